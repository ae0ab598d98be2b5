"""The corpus of a run, whatever it is made of."""

from pathlib import Path
from typing import Any, Protocol

from pico_ds.config import DataConfig
from pico_ds.data.rows import Rows, TrainingRows
from pico_ds.data.shard_corpus import ShardCorpus, open_shard_corpus
from pico_ds.data.text_corpus import TextCorpus, open_text_corpus
from pico_ds.data.tokenizer import TextTokenizer


class Corpus(Protocol):
    """What training needs of a corpus; how tasks are made of it is for `pico_ds.tasks` to say."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """What made its tokens."""

    @property
    def tokenizer_directory(self) -> Path:
        """Directory with the tokenizer in HF format."""

    def identity(self) -> dict[str, Any]:
        """Equal for equal corpora, wherever their files are."""

    def training_rows(self, sequence_length: int, seed: int) -> TrainingRows:
        """What training reads."""

    def validation_rows(self, sequence_length: int) -> Rows:
        """Held-out rows, in order."""


def open_corpus(config: DataConfig) -> TextCorpus | ShardCorpus:
    """Open what `data.source` names. Several processes may call this at once: one does the work, others find it done.

    Raises:
        DataError: data that cannot be read.
    """
    return open_shard_corpus(config) if config.source in ("shards", "hub") else open_text_corpus(config)
