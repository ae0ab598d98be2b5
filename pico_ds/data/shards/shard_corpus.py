"""A corpus of token shards. Only some of the shards are on the disk of a node at the same time."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from filelock import FileLock

from pico_ds.config import DataConfig
from pico_ds.data.cache_directory import cache_directory
from pico_ds.data.keyed_random import digest64, keyed_rng
from pico_ds.data.shards.shard_cache import ShardCache
from pico_ds.data.shards.shard_decoding import RowFormat, check_footer
from pico_ds.data.shards.shard_rows import ShardedRows, ShardRows
from pico_ds.data.shards.shard_sources import HubShards, LocalShards
from pico_ds.data.text.documents import corpus_identity
from pico_ds.data.text.tokenizer import TextTokenizer, import_tokenizer, load_tokenizer, tokenizer_identity
from pico_ds.errors import DataError

logger = logging.getLogger("pico_ds")

#: increase this number when a code change alters the cached shards for equal settings
_CACHE_VERSION = 1


@dataclass(frozen=True)
class ShardCorpus:
    """Shards in order. The last `data.validation_shards` shards are held out completely.

    Attributes:
        directory: directory that holds the tokenizer and the shards that are on this node.
    """

    directory: Path
    tokenizer: TextTokenizer
    cache: ShardCache
    config: DataConfig

    @property
    def tokenizer_directory(self) -> Path:
        """Directory that holds the tokenizer in HF format."""
        return self.directory / "tokenizer"

    @property
    def training_shards(self) -> range:
        """Numbers of the training shards."""
        return range(len(self.cache.files.names) - self.config.validation_shards)

    @property
    def validation_shards(self) -> range:
        """Numbers of the held-out shards."""
        return range(self.training_shards.stop, len(self.cache.files.names))

    def identity(self) -> dict[str, Any]:
        """Return values that are equal for equal shards and tokenizers.

        The shards are identified by the commit of a hub dataset, or by the names and sizes of local files.
        """
        shards = {**self.cache.files.identity, "validation_shards": len(self.validation_shards)}
        return {**shards, "tokenizer": self.tokenizer.digest}

    def training_rows(self, sequence_length: int, seed: int) -> ShardedRows:
        """Return the rows to train on, an endless sequence with a different order in each epoch."""
        return ShardedRows(self.cache, self.training_shards, sequence_length, seed, self.config.prefetch_shards)

    def validation_rows(self, sequence_length: int) -> ShardRows:
        """Return the rows of the held-out shards, in order.

        Raises:
            DataError: a shard cannot be fetched or used, or the held-out shards have no rows.
        """
        rows = ShardRows([self.cache.open(number) for number in self.validation_shards], sequence_length)
        if rows.n_rows == 0:
            raise DataError(
                f"data.validation_shards: the last {len(self.validation_shards)} shards, which are held out, have no "
                "rows; raise it, or remove the empty files"
            )
        return rows

    def training_pool(self, number: int, n_rows: int, seed: int) -> npt.NDArray[Any]:
        """Return the first rows `[at most n_rows, tokens]` of one training shard; tasks are sampled from these rows.

        Args:
            number: number of the pool. The pools of one epoch use the training shards in the order of a permutation
                keyed by (seed, epoch). If a shard has no rows, the next shard with rows is used.

        Raises:
            DataError: a shard cannot be fetched or used, or no training shard has rows.
        """
        shards = self.training_shards
        for _ in shards:
            epoch, place = divmod(number, len(shards))
            order = keyed_rng("pool order", seed, epoch).permutation(len(shards))
            rows = self.cache.open(int(order[place])).rows
            if len(rows):
                return rows[:n_rows]
            number += 1
        raise DataError("no training shard has any rows; add shards with rows")

    def held_out_pool(self, n_rows: int) -> npt.NDArray[Any]:
        """Return the first rows `[at most n_rows, tokens]` of the first held-out shard with rows, for held-out tasks.

        Raises:
            DataError: a shard cannot be fetched or used, or no held-out shard has rows.
        """
        for number in self.validation_shards:
            if len(rows := self.cache.open(number).rows):
                return rows[:n_rows]
        raise DataError("data.validation_shards: the held-out shards have no rows; raise it, or remove the empty files")


def open_shard_corpus(config: DataConfig) -> ShardCorpus:
    """Return the corpus after importing the tokenizer and checking the shards as `data.validate` requires.

    Raises:
        DataError: a shard or the tokenizer cannot be fetched or used, or there are too few shards to hold some out.
    """
    assert config.tokenizer is not None, "the configuration check requires it"
    files: HubShards | LocalShards = HubShards(config) if config.source == "hub" else LocalShards(config)
    n_shards = len(files.names)
    if n_shards <= config.validation_shards:
        raise DataError(
            f"data.validation_shards: got {config.validation_shards}, but there are only {n_shards} shards; the last "
            "ones are held out completely: lower it, or make smaller shards (scripts/prepare_data.py --rows_per_shard)"
        )
    local_identity = [] if config.source == "hub" else corpus_identity(config)
    key = digest64(_CACHE_VERSION, repr(files.identity), *local_identity, tokenizer_identity(config.tokenizer))
    directory = cache_directory(config) / f"shards-{key:016x}"
    with FileLock(f"{directory}.lock"):
        if not (directory / "tokenizer").exists():
            import_tokenizer(config.tokenizer, directory / "tokenizer.partial")
            (directory / "tokenizer.partial").rename(directory / "tokenizer")
        tokenizer = load_tokenizer(directory / "tokenizer")
        expected = RowFormat(config.sequence_length, tokenizer.vocab_size)
        corpus = ShardCorpus(directory, tokenizer, ShardCache(files, expected, directory, config.cache_gib), config)
        _validate(corpus)
    return corpus


def _validate(corpus: ShardCorpus) -> None:
    """Check the shards before training. A check that succeeded is not repeated.

    The mode `fast` reads the held-out shards and checks the token column of every local file. The mode `full` reads
    every row of every shard.

    Raises:
        DataError: a shard cannot be fetched or used, or the held-out shards have no rows.
    """
    mode, files = corpus.config.validate, corpus.cache.files
    done = corpus.directory / f"validated-{mode}-{corpus.config.sequence_length}"
    if mode == "off" or done.exists():
        return
    n_shards, n_rows = len(files.names), 0
    for number, name in enumerate(files.names):
        if mode == "full":
            n_rows += len(corpus.cache.open(number, range(number + 1, min(number + 2, n_shards))).rows)
            if (number + 1) % max(1, n_shards // 10) == 0:
                logger.info("data.validate: %d of %d shards are valid", number + 1, n_shards)
        elif isinstance(files, LocalShards):
            n_rows += check_footer(files.fetch(number, corpus.directory), name)
    if mode == "fast":
        corpus.validation_rows(corpus.config.sequence_length)
    logger.info("data.validate: %s: %d shards%s", mode, n_shards, f", {n_rows:,} rows" if n_rows else "")
    done.touch()
