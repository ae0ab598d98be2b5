"""Finds the whole words of a token stream, and selects the class words of each split."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pico_ds.config import SmlmtConfig
from pico_ds.data.keyed_random import keyed_uniform
from pico_ds.data.token_stream import TokenStream
from pico_ds.tasks.index.token_word_boundaries import (
    CONTINUES_RUN,
    GLUED_AFTER,
    GLUED_BEFORE,
    IN_RUN,
    INSIDE_CHARACTER,
    PURE,
    TokenClasses,
)
from pico_ds.tasks.index.words_in_text import word_name

WordSplit = Literal["train", "validation", "test"]
WORD_SPLITS: tuple[WordSplit, ...] = ("train", "validation", "test")

#: a longer run of tokens is not a word
MAX_WORD_TOKENS = 64
#: multiplier of the polynomial hash that identifies token runs (odd, 64 bits; from Steele and Vigna 2021)
HASH_MULTIPLIER = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True)
class WordRuns:
    """Runs of tokens that contain letters.

    Attributes:
        starts, ends: `[n_runs]` token positions, ends exclusive.
        hashes: `[n_runs]` hash of the token ids of a run.
        whole: `[n_runs]` whether a run is exactly one word. No part of "self-help", "don't", "U.S." or "20th" is a
            whole word, nor is a run with a token that also contains punctuation.
        inside_character: `[n_tokens]` whether a token begins in the middle of a character.
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    whole: npt.NDArray[np.bool_]
    inside_character: npt.NDArray[np.bool_]


def find_word_runs(tokens: npt.NDArray[Any], classes: TokenClasses) -> WordRuns:
    """Return all runs of tokens that contain letters, in order.

    Args:
        tokens: `[n_tokens]`
    """
    flags = classes.token_flags(tokens[None], at_edges=False)[0]
    continues = (flags & CONTINUES_RUN) != 0
    starts = np.flatnonzero((flags & (IN_RUN | CONTINUES_RUN)) == IN_RUN)
    stops = np.append(np.flatnonzero(~continues), len(tokens))
    ends = stops[np.searchsorted(stops, starts, side="right")]
    hashes = np.zeros(len(starts), dtype=np.uint64)
    whole = (flags[starts] & GLUED_BEFORE) == 0
    whole &= (flags[ends - 1] & GLUED_AFTER) == 0
    for offset in range(MAX_WORD_TOKENS):
        rest = np.flatnonzero(ends - starts > offset)
        if not len(rest):
            break
        places = starts[rest] + offset
        # a leading space changes the token and so the hash; both forms are merged by their text later
        hashes[rest] = hashes[rest] * HASH_MULTIPLIER + tokens[places].astype(np.uint64) + 1
        whole[rest] &= (flags[places] & PURE) != 0
    too_long = ends - starts > MAX_WORD_TOKENS
    hashes = np.where(too_long, ~hashes, hashes)
    return WordRuns(starts, ends, hashes, whole & ~too_long, (flags & INSIDE_CHARACTER) != 0)


@dataclass(frozen=True)
class ClassWords:
    """Words of a corpus, lower-cased, most frequent first.

    Attributes:
        words: text of each word id.
        train_counts: `[n_words]` occurrences in the training documents.
        run_hashes, run_words: sorted hashes of token runs, and the word id of each.
    """

    words: tuple[str, ...]
    train_counts: npt.NDArray[np.int64]
    run_hashes: npt.NDArray[np.uint64]
    run_words: npt.NDArray[np.int32]

    @classmethod
    def build(cls, train: TokenStream, validation: TokenStream, classes: TokenClasses) -> "ClassWords":
        """Collect the words of both splits. Only occurrences in the training documents are counted."""
        hashes: list[npt.NDArray[np.uint64]] = []
        spellings: list[list[int]] = []
        counts: list[npt.NDArray[np.int64]] = []
        for stream, counted in ((train, True), (validation, False)):
            tokens = stream.tokens
            runs = find_word_runs(tokens, classes)
            # parts of compounds ("self-government") are included, because they must be masked, but are not counted
            unique, first, place = np.unique(runs.hashes, return_index=True, return_inverse=True)
            hashes.append(unique)
            spellings.extend(
                tokens[start:end].tolist() for start, end in zip(runs.starts[first], runs.ends[first], strict=True)
            )
            counts.append(np.bincount(place, weights=runs.whole & counted, minlength=len(unique)).astype(np.int64))
        texts = [word_name(classes.text(ids)) if len(ids) <= MAX_WORD_TOKENS else None for ids in spellings]
        by_text: dict[str, int] = {}
        for text, count in zip(texts, np.concatenate(counts).tolist(), strict=True):
            if text is not None:
                by_text[text] = by_text.get(text, 0) + count
        ordered = sorted(by_text, key=lambda text: (-by_text[text], text))
        ids = {text: i for i, text in enumerate(ordered)}
        run_hashes, where = np.unique(np.concatenate(hashes), return_index=True)
        return cls(
            words=tuple(ordered),
            train_counts=np.array([by_text[text] for text in ordered], dtype=np.int64),
            run_hashes=run_hashes,
            run_words=np.array([ids.get(texts[i] or "", -1) for i in where], dtype=np.int32),
        )

    def look_up(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Return the word id of each run hash; -1 if the run is not a word."""
        places = np.minimum(np.searchsorted(self.run_hashes, hashes), len(self.run_hashes) - 1)
        return np.where(self.run_hashes[places] == hashes, self.run_words[places], np.int32(-1))

    def class_words(self, split: WordSplit, config: SmlmtConfig, split_seed: int) -> npt.NDArray[np.int64]:
        """Return the ids of the words that are in the frequency range and belong to a split (see `word_split`)."""
        in_range = (self.train_counts >= config.min_word_freq) & (self.train_counts <= config.max_word_freq)
        candidates = np.flatnonzero(in_range)
        in_split = [split == word_split(self.words[i], config, split_seed) for i in candidates]
        return candidates[np.array(in_split, dtype=np.bool_)]


def word_split(word: str, config: SmlmtConfig, split_seed: int) -> WordSplit:
    """Return the one split that a word belongs to, which a keyed hash of the word decides."""
    u = keyed_uniform("word split", split_seed, word)
    if u < config.validation_word_fraction:
        return "validation"
    if u < config.validation_word_fraction + config.test_word_fraction:
        return "test"
    return "train"
