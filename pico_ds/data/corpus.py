"""What training and tasks need of a corpus, and how a corpus is opened."""

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
        """Directory of the tokenizer in HF format."""

    def identity(self) -> dict[str, Any]:
        """Equal for equal corpora, wherever their files are."""

    def training_rows(self, sequence_length: int, seed: int) -> TrainingRows:
        """Rows to train on."""

    def validation_rows(self, sequence_length: int) -> Rows:
        """Held-out rows, in order."""


@runtime_checkable
class StreamCorpus(Corpus, Protocol):
    """A corpus whose tokens are indexed as a whole."""

    @property
    def train(self) -> TokenStream:
        """Training documents."""

    @property
    def validation(self) -> TokenStream:
        """Held-out documents."""


@runtime_checkable
class PooledCorpus(Corpus, Protocol):
    """A corpus that is too large to index as a whole: tasks are made of one pool of rows after another."""

    def training_pool(self, number: int, n_rows: int, seed: int) -> npt.NDArray[Any]:
        """Pool `number` of training rows, a pure function of its arguments. Shape `[n_rows, length]`."""

    def held_out_pool(self, n_rows: int) -> npt.NDArray[Any]:
        """Held-out rows. Shape `[n_rows, length]`."""


def open_corpus(config: DataConfig) -> Corpus:
    """Open the corpus of `data.source`. Several processes may call this at once: one does the work, the others wait.

    Raises:
        DataError: data that cannot be read.
    """
    return open_shard_corpus(config) if config.source in ("shards", "hub") else open_text_corpus(config)
