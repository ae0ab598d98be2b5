"""Positions of the words of a token stream, and the context of each occurrence."""

import numpy as np
import numpy.typing as npt

from pico_ds.config import SmlmtConfig
from pico_ds.data.token_stream import TokenStream
from pico_ds.tasks.index.class_words import ClassWords, find_word_runs
from pico_ds.tasks.index.token_word_boundaries import TokenClasses

Positions = npt.NDArray[np.int64]


class WordIndex:
    """Occurrences of every word of a stream, ordered by word, then by position.

    Attributes:
        tokens, document_ends: those of the stream; the tokens are memory-mapped.
        positions: `[n_occurrences]` position of the first token of each occurrence.
    """

    def __init__(self, stream: TokenStream, lexicon: ClassWords, classes: TokenClasses, config: SmlmtConfig) -> None:
        self.tokens, self.document_ends = stream.tokens, stream.document_ends
        runs = find_word_runs(self.tokens, classes)
        words = lexicon.look_up(runs.hashes)
        n_tokens = len(self.tokens)

        self._is_word_start = np.zeros(n_tokens, dtype=np.bool_)
        self._is_word_start[runs.starts] = True
        # the run of every token is stored, so that a word that a context would cut can be recognized
        run_of_token = np.cumsum(self._is_word_start) - 1
        in_run = np.zeros(n_tokens + 1, dtype=np.int8)
        np.add.at(in_run, runs.starts, 1)
        np.add.at(in_run, runs.ends, -1)
        inside = np.cumsum(in_run[:-1]) > 0
        self._word_of_token = np.where(inside, words[np.maximum(run_of_token, 0)], np.int32(-1)).astype(np.int32)
        self._continues_run = inside & ~self._is_word_start
        self._inside_character = runs.inside_character

        usable = runs.whole & (words >= 0) & (runs.ends - runs.starts <= config.context_tokens // 2)
        order = np.argsort(words[usable], kind="stable")
        occurrence_words = words[usable][order]
        self.positions: Positions = runs.starts[usable][order]
        self._span_starts, self._span_ends = self._bounds(occurrence_words, stream.document_ends, classes, config)
        self._first = np.searchsorted(occurrence_words, np.arange(len(lexicon.words) + 1))

    def occurrences(self, word: int) -> slice:
        """Return the slice of `positions` that holds the occurrences of a word."""
        return slice(int(self._first[word]), int(self._first[word + 1]))

    def contexts(self, occurrences: Positions) -> tuple[Positions, Positions]:
        """Return the start and the exclusive end of the context of each occurrence."""
        return self._span_starts[occurrences], self._span_ends[occurrences]

    def words_at(self, places: Positions) -> npt.NDArray[np.int32]:
        """Return the word that contains the token at each position; -1 for none."""
        return self._word_of_token[places]

    def unmasked_words_at(self, places: Positions) -> npt.NDArray[np.int32]:
        """Return -1 everywhere, because `words_at` finds every form of a word."""
        return np.full(places.shape, -1, dtype=np.int32)

    def begins_word(self, places: Positions) -> npt.NDArray[np.bool_]:
        """Return whether the token at each position is the first of a word."""
        return self._is_word_start[places]

    def disjoint_contexts(self, words: Positions, at_least: int) -> npt.NDArray[np.bool_]:
        """Return whether each word has `at_least` disjoint contexts, chosen greedily by earliest end."""
        found = self._first[words + 1] - self._first[words] >= at_least
        # words with too few occurrences are excluded first, to save steps
        begins, stops = self._first[words[found]], self._first[words[found] + 1]
        # contexts of a word are sorted by start, and also by end, so all words are processed together in one pass
        current = begins.copy()
        for _ in range(at_least - 1 if len(begins) else 0):
            ends = self._span_ends[np.minimum(current, len(self.positions) - 1)]
            current = np.where(current < stops, self._next_start(begins, stops, ends), stops)
        found[found] = current < stops
        return np.asarray(found)

    def _next_start(self, begins: Positions, stops: Positions, ends: Positions) -> Positions:
        found = np.empty_like(begins)
        for i, (begin, stop, end) in enumerate(zip(begins.tolist(), stops.tolist(), ends.tolist(), strict=True)):
            found[i] = begin + np.searchsorted(self._span_starts[begin:stop], end)
        return found

    def _bounds(
        self,
        words: npt.NDArray[np.int32],
        document_ends: Positions,
        classes: TokenClasses,
        config: SmlmtConfig,
    ) -> tuple[Positions, Positions]:
        """Return the bounds of the context of every occurrence: within its document (or sentence), without cut words.

        A context has `context_tokens` tokens, counted after every occurrence of its word is replaced by one [MASK].
        Otherwise the length of a context would reveal how many tokens the word has.

        Args:
            words: word of each occurrence.
        """
        positions, length = self.positions, config.context_tokens
        # no context crosses a special token, because a row of a pre-tokenized corpus may contain several documents
        special = np.flatnonzero(classes.is_special[self.tokens])
        bounds = np.union1d(document_ends, np.concatenate([special, special + 1]))
        if config.context == "sentence":
            bounds = np.union1d(bounds, self._sentence_ends(classes))
        place = np.searchsorted(bounds, positions, side="right")
        lower = np.concatenate([[0], bounds])[place]
        upper = bounds[place]
        removed = _RemovedTokens(self._word_of_token, self._continues_run)
        # tokens available on each side of the [MASK] after masking, then how many of them the context includes
        left = positions - lower - removed.count(words, lower, positions)
        right = upper - positions - 1 - removed.count(words, positions, upper)
        before = np.minimum(left, np.maximum(length // 2, length - 1 - right))
        after = np.minimum(right, length - 1 - before)
        starts, ends = positions - before, positions + 1 + after
        while ((moved := positions - before - removed.count(words, starts, positions)) < starts).any():
            starts = moved
        while ((moved := positions + 1 + after + removed.count(words, positions, ends)) > ends).any():
            ends = moved
        continues = np.append(self._continues_run | self._inside_character, False)
        # masking also removes the rest of an occurrence of the word that the end cuts, so extend the context past it
        word_of_token = np.append(self._word_of_token, np.int32(-1))
        while (own := continues[ends] & (word_of_token[ends] == words) & (ends < upper)).any():
            ends = ends + own
        # exclude words that the bounds cut
        while (cut := continues[starts]).any():
            starts = starts + cut
        while (cut := continues[ends]).any():
            ends = ends - cut
        return starts, ends

    def _sentence_ends(self, classes: TokenClasses) -> Positions:
        """Return the exclusive ends of sentences: after . ! or ? before a space, and after line breaks."""
        tokens = self.tokens
        following = np.append(classes.starts_with_space[tokens[1:]], True)
        after_stop = classes.ends_sentence[tokens] & following
        return np.flatnonzero(after_stop | classes.breaks_line[tokens]) + 1


class _RemovedTokens:
    """Counts the tokens that masking removes: all tokens of an occurrence of a word except the first."""

    def __init__(self, word_of_token: npt.NDArray[np.int32], continues_run: npt.NDArray[np.bool_]) -> None:
        places = np.flatnonzero(continues_run & (word_of_token >= 0))
        self._width = len(word_of_token) + 1
        self._keys = np.sort(self._key(word_of_token[places], places))

    def count(self, words: npt.NDArray[np.int32], starts: Positions, ends: Positions) -> Positions:
        """Return how many tokens of each word are removed in [start, end)."""
        first, last = (np.searchsorted(self._keys, self._key(words, places)) for places in (starts, ends))
        return last - first

    def _key(self, words: npt.NDArray[np.int32], places: Positions) -> Positions:
        return words.astype(np.int64) * self._width + places
