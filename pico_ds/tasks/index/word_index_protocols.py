"""Interfaces of the vocabulary and the word index from which tasks are built."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pico_ds.config import SmlmtConfig
from pico_ds.tasks.index.class_words import WordSplit

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@runtime_checkable
class Vocabulary(Protocol):
    """The words of a text."""

    @property
    def words(self) -> tuple[str, ...]:
        """Text of each word."""

    def class_words(self, split: WordSplit, config: SmlmtConfig, split_seed: int) -> Integers:
        """Return the ids of the words that may be classes of a split."""


@runtime_checkable
class Index(Protocol):
    """Occurrences of words, ordered by word, then by position.

    Attributes:
        tokens: `[n_tokens]`
        document_ends: exclusive ends of documents.
        positions: `[n_occurrences]` position of the first token of each occurrence.
    """

    tokens: npt.NDArray[Any]
    document_ends: Integers
    positions: npt.NDArray[Any]

    def occurrences(self, word: int) -> slice:
        """Return the slice of `positions` that holds the occurrences of a word."""

    def contexts(self, occurrences: Integers) -> tuple[Integers, Integers]:
        """Return the start and the exclusive end of the context of each occurrence."""

    def words_at(self, places: Integers) -> npt.NDArray[np.int32]:
        """Return the word that contains the token at each position; -1 for none."""

    def unmasked_words_at(self, places: Integers) -> npt.NDArray[np.int32]:
        """Return the word that begins at each position in a form that `words_at` does not find; -1 for none."""

    def begins_word(self, places: Integers) -> Flags:
        """Return whether the token at each position is the first of a word."""

    def disjoint_contexts(self, words: Integers, at_least: int) -> Flags:
        """Return whether each word has `at_least` disjoint contexts."""
