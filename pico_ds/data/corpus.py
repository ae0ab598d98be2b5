"""The corpus interfaces that training and tasks use, and the function that opens a corpus."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from pico_ds.config import DataConfig
from pico_ds.data.rows import Rows, TrainingRows
from pico_ds.data.shards.shard_corpus import open_shard_corpus
from pico_ds.data.text.text_corpus import open_text_corpus
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.data.token_stream import TokenStream


@runtime_checkable
class Corpus(Protocol):
    """A corpus for autoregressive training. Tasks need a `StreamCorpus` or a `PooledCorpus`."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the corpus."""

    @property
    def tokenizer_directory(self) -> Path:
        """Directory that holds the tokenizer in HF format."""

    def identity(self) -> dict[str, Any]:
        """Return values that are equal for equal corpora, regardless of where their files are."""

    def training_rows(self, sequence_length: int, seed: int) -> TrainingRows:
        """Return the rows to train on, an endless sequence."""

    def validation_rows(self, sequence_length: int) -> Rows:
        """Return the held-out rows, in order."""


@runtime_checkable
class StreamCorpus(Corpus, Protocol):
    """A corpus that is small enough to index all its tokens at once."""

    @property
    def train(self) -> TokenStream:
        """Tokens of the training documents."""

    @property
    def validation(self) -> TokenStream:
        """Tokens of the held-out documents."""


@runtime_checkable
class PooledCorpus(Corpus, Protocol):
    """A corpus that is too large to index at once. Tasks are sampled from one pool of rows after another."""

    def training_pool(self, number: int, n_rows: int, seed: int) -> npt.NDArray[Any]:
        """Return pool `number` of training rows, `[at most n_rows, length]`, a pure function of the arguments."""

    def held_out_pool(self, n_rows: int) -> npt.NDArray[Any]:
        """Return held-out rows, `[at most n_rows, length]`."""


def open_corpus(config: DataConfig) -> Corpus:
    """Return the corpus of `data.source`.

    Several processes may call this function at the same time: one process prepares the corpus and the others wait.

    Raises:
        DataError: the data cannot be read.
    """
    return open_shard_corpus(config) if config.source in ("shards", "hub") else open_text_corpus(config)
