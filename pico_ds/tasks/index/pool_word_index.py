"""Positions of the single-token words of a pool of token rows, found from token ids without decoding any text.

A pool holds millions of tokens and is replaced during training, so its index must be small and quick to build. The
index stores the positions of the words that may be classes, sorted by word (4 bytes each), and one byte of flags for
every token. Context bounds are computed only for the few contexts that a task needs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.config import SmlmtConfig
from pico_ds.tasks.index.class_words import HASH_MULTIPLIER, MAX_WORD_TOKENS, WordSplit, word_split
from pico_ds.tasks.index.token_word_boundaries import (
    CONTINUES_RUN,
    GLUED_AFTER,
    GLUED_BEFORE,
    IN_RUN,
    INSIDE_CHARACTER,
    PURE,
    SPACED,
    SPECIAL,
    TokenClasses,
)
from pico_ds.tasks.index.words_in_text import word_name

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: tokens that a thread processes at once
_CHUNK_TOKENS = 2**18
_THREADS = 2
#: size of the cache of words that are spelled with several tokens
_MAX_SPELLINGS = 2**18


@dataclass(frozen=True)
class TokenWords:
    """The words that are a single token of the vocabulary. Tokens that differ only in spaces or case are one word.

    Attributes:
        words: text of each word, in alphabetical order.
        word_of_token: `[vocab_size]` word of each token, -1 for none.
        numbers: index in `words` of each word.
    """

    words: tuple[str, ...]
    word_of_token: npt.NDArray[np.int32]
    classes: TokenClasses
    numbers: dict[str, int]
    #: word of each run of several tokens, by hash; -1 for none
    _spellings: dict[int, int | None] = field(default_factory=dict)
    _splits: dict[tuple[float, float, int], list[WordSplit]] = field(default_factory=dict)

    @classmethod
    def of(cls, classes: TokenClasses) -> "TokenWords":
        """Collect the words of a vocabulary."""
        names = [word_name(classes.text([number])) for number in range(len(classes.is_special))]
        words = sorted({name for name in names if name is not None})
        numbers = {word: number for number, word in enumerate(words)}
        word_of_token = np.array([-1 if name is None else numbers[name] for name in names], dtype=np.int32)
        return cls(tuple(words), word_of_token, classes, numbers)

    def spelled(self, digests: npt.NDArray[np.uint64], tokens_of: Callable[[int], list[int]]) -> npt.NDArray[np.int32]:
        """Return the word that each run of tokens spells, for example a word in capitals; -1 for none.

        Args:
            digests: hash of the tokens of each run.
            tokens_of: returns the tokens of a run, given its index in `digests`.
        """
        keys = digests.tolist()
        found = [self._spellings.get(key) for key in keys]
        for place, word in enumerate(found):
            if word is None:
                name = word_name(self.classes.text(tokens_of(place)))
                found[place] = -1 if name is None else self.numbers.get(name, -1)
        if len(self._spellings) > _MAX_SPELLINGS:
            self._spellings.clear()
        self._spellings.update(zip(keys, found, strict=True))
        return np.array(found, dtype=np.int32)

    def of_split(self, split: WordSplit, config: SmlmtConfig, split_seed: int) -> Flags:
        """Return whether each word belongs to a split. The result is cached for all pools."""
        key = (config.validation_word_fraction, config.test_word_fraction, split_seed)
        if key not in self._splits:
            self._splits[key] = [word_split(word, config, split_seed) for word in self.words]
        return np.array([split == other for other in self._splits[key]], dtype=np.bool_)


@dataclass(frozen=True)
class PoolLexicon:
    """The words of a pool.

    Attributes:
        counts: `[n_words]` occurrences in the pool.
    """

    token_words: TokenWords
    counts: Integers

    @property
    def words(self) -> tuple[str, ...]:
        """Text of each word."""
        return self.token_words.words

    def class_words(self, split: WordSplit, config: SmlmtConfig, split_seed: int) -> Integers:
        """Return the ids of the words that are in the frequency range and belong to a split (see `word_split`)."""
        in_range = (self.counts >= config.min_word_freq) & (self.counts <= config.max_word_freq)
        return np.flatnonzero(in_range & self.token_words.of_split(split, config, split_seed))


class TokenIndex:
    """Occurrences of the words of a pool of rows, ordered by word, then by position.

    Attributes:
        tokens: `[n_tokens]`, the concatenated rows.
        document_ends: exclusive ends of documents and rows, in order.
        positions: `[n_occurrences]` positions of the words with a frequency from `min_word_freq` to `max_word_freq`.
    """

    def __init__(self, rows: npt.NDArray[Any], words: TokenWords, config: SmlmtConfig, threads: int = _THREADS) -> None:
        """
        Args:
            rows: `[n_rows, tokens]`, fewer than 2^32 tokens in total.
        """
        assert rows.size < 2**32, (
            f"a pool has {rows.size} tokens; positions are 32-bit, so it must have fewer than 2^32"
        )
        self.tokens, self._width, self._words = rows.reshape(-1), rows.shape[1], words
        self._length, self._by_sentence = config.context_tokens, config.context == "sentence"
        per_chunk = max(1, _CHUNK_TOKENS // self._width)
        chunks = [(first, rows[first : first + per_chunk]) for first in range(0, len(rows), per_chunk)]
        self._flags = np.empty(rows.shape, dtype=np.uint8)
        with ThreadPoolExecutor(threads, "index") as pool:
            found = [*pool.map(lambda chunk: self._scan_chunk(*chunk), chunks)]
            by_chunk = np.array([counts for counts, _, _ in found])
            self.lexicon = PoolLexicon(words, by_chunk.sum(axis=0))
            self.positions = self._sort(chunks, by_chunk, config, pool.map)
        offsets = np.array([first * self._width for first, _ in chunks])
        special, ends = (
            np.concatenate([offset + part[which] for offset, part in zip(offsets, found, strict=True)])
            for which in (1, 2)
        )
        row_ends = np.arange(1, len(rows) + 1) * self._width
        self.document_ends = _merged(row_ends, special + 1)
        # no context crosses a special token
        self._bounds = _merged(self.document_ends, special, ends)

    def occurrences(self, word: int) -> slice:
        """Return the slice of `positions` that holds the occurrences of a word."""
        return slice(int(self._first[word]), int(self._first[word + 1]))

    def contexts(self, occurrences: Integers) -> tuple[Integers, Integers]:
        """Return the bounds of the context of each occurrence: within its document (or sentence), without cut words."""
        positions = self.positions[occurrences].astype(np.int64)
        place = np.searchsorted(self._bounds, positions, side="right")
        lower, upper = np.where(place > 0, self._bounds[place - 1], 0), self._bounds[place]
        starts = np.maximum(lower, np.minimum(positions - self._length // 2, upper - self._length))
        ends = np.minimum(starts + self._length, upper)
        # exclude words that the bounds cut
        while (cut := self._continues_word(starts)).any():
            starts = starts + cut
        while (cut := self._continues_word(ends)).any():
            ends = ends - cut
        return starts, ends

    def words_at(self, places: Integers) -> npt.NDArray[np.int32]:
        """Return the single-token word at each position; -1 for none."""
        begins, next_continues = self._run_starts(places)
        return np.where(begins & ~next_continues, self._words.word_of_token[self.tokens[places]], np.int32(-1))

    def unmasked_words_at(self, places: Integers) -> npt.NDArray[np.int32]:
        """Return the word that several tokens spell from each position on, for example in capitals; -1 for none."""
        begins, next_continues = self._run_starts(places)
        is_start = begins & next_continues
        starts = places[is_start]
        flags, last = self._flags.reshape(-1), len(self.tokens) - 1
        digests, ends = np.zeros(len(starts), dtype=np.uint64), starts.copy()
        rest = np.arange(len(starts))
        for _ in range(MAX_WORD_TOKENS):
            digests[rest] = digests[rest] * HASH_MULTIPLIER + self.tokens[ends[rest]] + 1
            ends[rest] += 1
            rest = rest[ends[rest] <= last]
            rest = rest[(flags[ends[rest]] & CONTINUES_RUN) != 0]
            if not len(rest):
                break
        digests, first, where = np.unique(digests, return_index=True, return_inverse=True)
        spelled = self._words.spelled(digests, lambda run: self.tokens[starts[first[run]] : ends[first[run]]].tolist())
        found = np.full(places.shape, -1, dtype=np.int32)
        found[is_start] = spelled[where]
        return found

    def _run_starts(self, places: Integers) -> tuple[Flags, Flags]:
        """Return whether a run of letters begins at each position, and whether the next token continues one."""
        flags, last = self._flags.reshape(-1), len(self.tokens) - 1
        begins = (flags[places] & (IN_RUN | CONTINUES_RUN)) == IN_RUN
        # no run crosses rows: CONTINUES_RUN is never set on the first token of a row
        return begins, (flags[np.minimum(places + 1, last)] & CONTINUES_RUN) != 0

    def begins_word(self, places: Integers) -> Flags:
        """Return True everywhere, because the words that `words_at` finds have one token."""
        return np.ones(places.shape, dtype=np.bool_)

    def disjoint_contexts(self, words: Integers, at_least: int) -> Flags:
        """Return whether each word has `at_least` disjoint contexts, chosen greedily by earliest end."""
        current, stops = self._first[words].copy(), self._first[words + 1]
        # words with too few occurrences are excluded first, to save steps
        is_possible = stops - current >= at_least
        for _ in range(at_least - 1):
            rest = np.flatnonzero(is_possible)
            if not len(rest):
                break
            ends = self.contexts(current[rest])[1]
            # the context of the next occurrence rarely overlaps; if it does, try the one after it
            while len(rest):
                current[rest] += 1
                is_possible[rest] = current[rest] < stops[rest]
                inside = is_possible[rest]
                rest, ends = rest[inside], ends[inside]
                overlaps = self.contexts(current[rest])[0] < ends
                rest, ends = rest[overlaps], ends[overlaps]
        return is_possible

    def _scan_chunk(self, first: int, rows: npt.NDArray[Any]) -> tuple[Integers, Integers, Integers]:
        """Count the words of a chunk, and find its special tokens and, for `smlmt.context: sentence`, sentence ends.

        Also stores the flags of the chunk.

        Args:
            first: row of the pool at which the chunk begins.
        """
        words, classes = self._words, self._words.classes
        flags = classes.token_flags(rows, at_edges=True)
        self._flags[first : first + len(rows)] = flags
        tokens = np.bincount(rows[self._usable(first, rows)], minlength=len(words.word_of_token))
        has_word = words.word_of_token >= 0
        counts = np.bincount(
            words.word_of_token[has_word], weights=tokens[has_word], minlength=len(words.words)
        ).astype(np.int64)
        special = np.flatnonzero(flags & SPECIAL)
        if not self._by_sentence:
            return counts, special, np.empty(0, dtype=np.int64)
        spaced_next = np.ones(flags.shape, dtype=np.bool_)
        spaced_next[:, :-1] = (flags[:, 1:] & SPACED) != 0
        breaks = classes.breaks_line[rows]
        return counts, special, np.flatnonzero((classes.ends_sentence[rows] & spaced_next) | breaks) + 1

    def _usable(self, first: int, rows: npt.NDArray[Any]) -> Flags:
        """Return whether each token of a chunk is a whole word, by the rules of `find_word_runs`.

        A token at the edge of a row that may be part of a longer word does not count.
        """
        flags = self._flags[first : first + len(rows)]
        next_continues = np.zeros(flags.shape, dtype=np.bool_)
        next_continues[:, :-1] = (flags[:, 1:] & CONTINUES_RUN) != 0
        is_single = (flags & (IN_RUN | CONTINUES_RUN | PURE | GLUED_BEFORE | GLUED_AFTER)) == (IN_RUN | PURE)
        return is_single & ~next_continues & (self._words.word_of_token[rows] >= 0)

    def _sort(
        self,
        chunks: list[tuple[int, npt.NDArray[Any]]],
        by_chunk: Integers,
        config: SmlmtConfig,
        in_threads: Callable[..., Any],
    ) -> npt.NDArray[np.uint32]:
        """Return the positions of the words in the frequency range, by a counting sort that is parallel over chunks."""
        counts = self.lexicon.counts
        kept = (counts >= config.min_word_freq) & (counts <= config.max_word_freq)
        self._first: Integers = np.concatenate([[0], np.cumsum(np.where(kept, counts, 0))])
        before = np.cumsum(by_chunk, axis=0) - by_chunk
        positions = np.empty(self._first[-1], dtype=np.uint32)
        has_word = self._words.word_of_token >= 0
        kept_token = np.zeros(len(has_word), dtype=np.bool_)
        kept_token[has_word] = kept[self._words.word_of_token[has_word]]
        # NumPy's stable sort is a radix sort only for 16-bit integers
        narrow = np.uint16 if len(kept) <= 2**16 else np.int32
        word_of_token = np.where(kept_token, self._words.word_of_token, 0).astype(narrow)

        def place(number: int) -> None:
            first, rows = chunks[number]
            usable = self._usable(first, rows) & kept_token[rows]
            places = np.flatnonzero(usable)
            words = word_of_token[rows.reshape(-1)[places]]
            order = np.argsort(words, kind="stable")
            words = words[order]
            group = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]])) if len(words) else places
            rank = np.arange(len(words)) - np.repeat(group, np.diff(np.append(group, len(words))))
            target = self._first[words] + before[number, words] + rank
            positions[target] = places[order] + first * self._width

        [*in_threads(place, range(len(chunks)))]
        return positions

    def _continues_word(self, places: Integers) -> Flags:
        """Return whether the token at each position continues the word or the character of the token before it."""
        inside = np.minimum(places, len(self.tokens) - 1)
        flags = self._flags.reshape(-1)[inside]
        return (
            (places < len(self.tokens))
            & (places % self._width > 0)
            & ((flags & (CONTINUES_RUN | INSIDE_CHARACTER)) != 0)
        )


def _merged(*ordered: Integers) -> Integers:
    """Return the sorted union of sorted arrays."""
    # np.unique hashes, which is many times slower than merging sorted arrays
    places = np.sort(np.concatenate(ordered), kind="stable")
    return places[np.diff(places, prepend=-1) > 0]
