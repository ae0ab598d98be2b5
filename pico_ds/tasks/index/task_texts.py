"""Indexes the text from which tasks are built: either the whole corpus, or pools of its rows."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from pico_ds.config import RunConfig
from pico_ds.data.corpus import Corpus, PooledCorpus, StreamCorpus
from pico_ds.tasks.index.class_words import ClassWords
from pico_ds.tasks.index.corpus_word_index import WordIndex
from pico_ds.tasks.index.pool_word_index import TokenIndex, TokenWords
from pico_ds.tasks.index.token_word_boundaries import TokenClasses
from pico_ds.tasks.index.tokenizer_word_check import check_words
from pico_ds.tasks.index.word_index_protocols import Index, Vocabulary


@dataclass(frozen=True)
class Text:
    """The words of a text, and the index of their positions."""

    index: Index
    vocabulary: Vocabulary


@runtime_checkable
class Texts(Protocol):
    """Indexed texts of a corpus for training and held-out tasks."""

    #: whether training uses a sequence of texts instead of one
    is_pooled: bool

    def training(self, number: int) -> Text:
        """Return training text `number`. If `is_pooled`, every call builds it again."""

    @property
    def held_out(self) -> Text:
        """Text that is not used for training."""


class WholeTexts:
    """Indexes every word of every document. Words may have several tokens."""

    is_pooled = False

    def __init__(self, config: RunConfig, corpus: StreamCorpus) -> None:
        self._config, self._corpus = config, corpus

    def training(self, number: int) -> Text:
        """Return the training documents; the number is ignored."""
        return self._training

    @cached_property
    def held_out(self) -> Text:
        """The held-out documents."""
        index = WordIndex(self._corpus.validation, self._lexicon, self._classes, self._config.smlmt)
        return Text(index, self._lexicon)

    @cached_property
    def _training(self) -> Text:
        return Text(WordIndex(self._corpus.train, self._lexicon, self._classes, self._config.smlmt), self._lexicon)

    @cached_property
    def _classes(self) -> TokenClasses:
        return TokenClasses.of(self._corpus.tokenizer)

    @cached_property
    def _lexicon(self) -> ClassWords:
        corpus = self._corpus
        check_words(corpus.tokenizer, self._classes, corpus.train.tokens)
        return ClassWords.build(corpus.train, corpus.validation, self._classes)


class PooledTexts:
    """Indexes `smlmt.pool_rows` rows of a shard at a time. Words have one token."""

    is_pooled = True

    def __init__(self, config: RunConfig, corpus: PooledCorpus) -> None:
        self._config, self._corpus, self._is_checked = config, corpus, False

    def training(self, number: int) -> Text:
        """Return pool `number`, a pure function of (seed, number)."""
        smlmt, seed = self._config.smlmt, self._config.training.seed
        return self._text(self._corpus.training_pool(number, smlmt.pool_rows, seed))

    @cached_property
    def held_out(self) -> Text:
        """The first rows of the held-out shards."""
        return self._text(self._corpus.held_out_pool(self._config.smlmt.pool_rows))

    def _text(self, rows: npt.NDArray[Any]) -> Text:
        if not self._is_checked:
            check_words(self._corpus.tokenizer, self._classes, rows)
            self._is_checked = True
        index = TokenIndex(rows, self._words, self._config.smlmt)
        return Text(index, index.lexicon)

    @cached_property
    def _classes(self) -> TokenClasses:
        return TokenClasses.of(self._corpus.tokenizer)

    @cached_property
    def _words(self) -> TokenWords:
        return TokenWords.of(self._classes)


def texts_of(config: RunConfig, corpus: Corpus) -> Texts:
    """Return the texts of a corpus. Each text is built on first use.

    Raises:
        TypeError: the corpus is neither a stream nor pooled.
    """
    if isinstance(corpus, PooledCorpus):
        return PooledTexts(config, corpus)
    if isinstance(corpus, StreamCorpus):
        return WholeTexts(config, corpus)
    raise TypeError(f"{type(corpus).__name__} is neither a StreamCorpus nor a PooledCorpus")
