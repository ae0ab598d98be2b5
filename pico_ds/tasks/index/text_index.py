"""What tasks need to know of the text that they are made of."""

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
        """Ids of the words that may be classes of a split."""


@runtime_checkable
class Index(Protocol):
    """Occurrences of words, ordered by word, then by position.

    Attributes:
        tokens: `[n_tokens]`
        document_ends: where documents end (exclusive).
        positions: `[n_occurrences]` first token of each.
    """

    tokens: npt.NDArray[Any]
    document_ends: Integers
    positions: npt.NDArray[Any]

    def occurrences(self, word: int) -> slice:
        """Where the occurrences of a word stand in `positions`."""

    def contexts(self, occurrences: Integers) -> tuple[Integers, Integers]:
        """Bounds (the second exclusive) of the context of each occurrence."""

    def words_at(self, places: Integers) -> npt.NDArray[np.int32]:
        """The word that the token at each place is part of, -1 for none."""

    def unmasked_words_at(self, places: Integers) -> npt.NDArray[np.int32]:
        """The word that begins at each place in a form that `words_at` does not know, -1 for none."""

    def begins_word(self, places: Integers) -> Flags:
        """Whether the token at each place is the first of a word."""

    def disjoint_contexts(self, words: Integers, at_least: int) -> Flags:
        """For each word, whether it has `at_least` contexts of which no two overlap."""
