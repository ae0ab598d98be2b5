"""Converts raw text to token shards. Several processes tokenize the documents, and the shards keep their order."""

import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.config import DataConfig
from pico_ds.data.input_files import Document
from pico_ds.data.shards.shard_writing import ShardWriter
from pico_ds.data.text.documents import corpus_identity, data_files, read_documents
from pico_ds.data.text.tokenizer import TextTokenizer, import_tokenizer, load_tokenizer, warn_about_special_tokens
from pico_ds.errors import DataError
from pico_ds.hub_requests import http_error

#: a batch for one process ends at this number of documents or of characters
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 512, 2**21
#: maximum number of batches per worker that are handed out before the first of them is written
_BATCHES_AHEAD = 4

#: tokenizer of a worker process, set when the worker starts
_TOKENIZER: TextTokenizer


@dataclass(frozen=True)
class Source:
    """Documents in a fixed order.

    Attributes:
        identity: values that determine the documents and their order.
        read: takes a number of documents to skip and returns an iterator over the rest.
    """

    identity: dict[str, Any]
    read: Callable[[int], Iterator[str]]


def local_source(paths: list[str], text_column: str, txt_documents: str) -> Source:
    """Return the documents of local files, read in the same way as with `data.source: files`.

    Raises:
        DataError: a path or glob matches no file.
    """
    config = DataConfig.model_validate(
        {"source": "files", "paths": paths, "text_column": text_column, "txt_documents": txt_documents}
    )
    files = data_files(config)

    def read(first: int) -> Iterator[str]:
        return islice(_texts(read_documents(config)), first, None)

    identity = {"files": corpus_identity(config)[: len(files)], "text_column": text_column}
    return Source({**identity, "txt_documents": txt_documents}, read)


def hub_source(dataset: str, subset: str | None, split: str, text_column: str) -> Source:
    """Return the documents of a dataset on the hub, which are streamed.

    Raises:
        DataError: the dataset cannot be read, or lacks the text column.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(dataset, subset, split=split, streaming=True)
        columns = rows.column_names or list(next(iter(rows)))
    except (OSError, ValueError, DatasetsError, StopIteration, http_error()) as error:
        raise DataError(
            f"--dataset: {dataset!r} cannot be read: {error}. Check the name, --subset and --split, the network, and "
            "$HF_TOKEN for a gated dataset"
        ) from error
    if text_column not in columns:
        raise DataError(f"--text_column: {dataset} has the columns {', '.join(columns)}; got {text_column!r}")

    def read(first: int) -> Iterator[str]:
        values = (row[text_column] for row in rows.select_columns([text_column]))
        return islice(filter(None, (_hub_text(value, dataset, text_column) for value in values)), first, None)

    return Source({"dataset": dataset, "subset": subset, "split": split, "text_column": text_column}, read)


def _hub_text(value: Any, dataset: str, column: str) -> str:
    if value is not None and not isinstance(value, str):
        raise DataError(f"--text_column: {column!r} of {dataset} holds {value!r:.40}, expected a string")
    return (value or "").strip()


def _texts(documents: Iterator[Document]) -> Iterator[str]:
    for document in documents:
        if not isinstance(document, str):
            raise DataError(
                "the files already hold token ids; use raw text, or train on them with data.source: files or shards"
            )
        yield document


@dataclass
class Counts:
    """Progress of a job.

    `documents` and `shards` include those of an earlier start. `tokens` and `special` count only this start.
    """

    documents: int = 0
    tokens: int = 0
    shards: int = 0
    #: how often each special token of the tokenizer occurs in the texts
    special: Counter[str] = field(default_factory=Counter)


@dataclass
class Preparation:
    """A job that tokenizes the texts of a source and writes them as shards to `out`."""

    source: Source
    tokenizer: str
    out: Path
    sequence_length: int
    rows_per_shard: int
    workers: int
    counts: Counts = field(default_factory=Counts)

    def run(self, on_progress: Callable[[Counts], None]) -> bool:
        """Write the shards. If an earlier start was interrupted, continue after its last finished shard.

        Args:
            on_progress: called with the counts after each document.

        Returns:
            False if all shards were already complete, otherwise True.

        Raises:
            DataError: the texts, the tokenizer or the directory cannot be used, or `out` holds shards of another job.
        """
        directory, imported = self.out / "tokenizer", self.out / "tokenizer.partial"
        shutil.rmtree(imported, ignore_errors=True)
        # a hub tokenizer is assumed not to change under its name, so a resumed job does not download it again
        is_new = Path(self.tokenizer).is_dir() or not directory.exists()
        if is_new:
            import_tokenizer(self.tokenizer, imported)
        content = ((imported if is_new else directory) / "tokenizer.json").read_bytes()
        settings = {
            **self.source.identity,
            "tokenizer_sha256": sha256(content).hexdigest(),
            "row_tokens": self.sequence_length + 1,
            "rows_per_shard": self.rows_per_shard,
        }
        try:
            writer = ShardWriter(self.out, settings, self.sequence_length + 1, self.rows_per_shard)
            if is_new and not writer.is_complete:
                # an earlier start that wrote no shard may have left another tokenizer here
                shutil.rmtree(directory, ignore_errors=True)
                imported.rename(directory)
        finally:
            shutil.rmtree(imported, ignore_errors=True)
        if writer.is_complete:
            return False
        progress = writer.progress
        self.counts = Counts(progress.documents, 0, len(progress.shards))
        for tokens in self._tokenized(self.source.read(progress.documents), directory):
            writer.add(tokens)
            self.counts.documents += 1
            self.counts.tokens += len(tokens)
            self.counts.shards = len(writer.progress.shards)
            on_progress(self.counts)
        if self.counts.documents == 0:
            raise DataError("no document has any text; check the files and --text_column")
        warn_about_special_tokens(self.counts.special)
        writer.finish({"documents": self.counts.documents})
        self.counts.shards = len(writer.progress.shards)
        return True

    def _tokenized(self, texts: Iterator[str], tokenizer: Path) -> Iterator[npt.NDArray[np.int32]]:
        """Yield the tokens of each document followed by an end-of-text token, in order."""
        # limit the number of batches, so that results do not fill the memory if the disk is slower than the cores
        free_slots, is_finished = Semaphore(_BATCHES_AHEAD * self.workers), Event()

        def limited_batches() -> Iterator[list[str]]:
            for batch in text_batches(texts):
                free_slots.acquire()
                if is_finished.is_set():
                    return
                yield batch

        # spawn instead of fork, because the threads of the tokenizer do not survive a fork
        context = multiprocessing.get_context("spawn")
        with context.Pool(self.workers, _start_worker, (str(tokenizer),)) as pool:
            try:
                for flat, lengths, special in pool.imap(_tokenize, limited_batches()):
                    free_slots.release()
                    self.counts.special.update(special)
                    yield from np.split(flat, np.cumsum(lengths)[:-1])
            finally:
                # the pool can end only after its feeding thread, which may be waiting for a free slot
                is_finished.set()
                free_slots.release()


def text_batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Yield batches of texts. Each batch is tokenized by one process in one call."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _start_worker(tokenizer: str) -> None:
    # there are as many processes as cores, so threads within a process would only compete for the cores
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    global _TOKENIZER
    _TOKENIZER = load_tokenizer(Path(tokenizer))


def _tokenize(texts: list[str]) -> tuple[npt.NDArray[np.int32], list[int], Counter[str]]:
    end = _TOKENIZER.end_of_text_id
    encoded = [np.array([*ids, end], dtype=np.int32) for ids in _TOKENIZER.encode(texts)]
    return np.concatenate(encoded), [len(tokens) for tokens in encoded], _TOKENIZER.count_special(texts)
