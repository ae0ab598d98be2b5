"""Writes a stream of tokens as parquet shards of fixed-length rows. An interrupted job can resume."""

import hashlib
import json
import os
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from pico_ds.data.input_files import TOKEN_COLUMN
from pico_ds.errors import DataError
from pico_ds.file_writing import replace_text

_PARTIAL, _PROGRESS, MANIFEST = ".partial", "progress.json", "manifest.json"


class ShardRecord(BaseModel):
    """Size and checksum of a finished shard."""

    model_config = ConfigDict(frozen=True)

    rows: int
    sha256: str


class Progress(BaseModel):
    """State of a job after its last finished shard.

    Attributes:
        settings: settings that determine the content of the shards.
        documents: number of documents whose tokens are all in shards.
        tokens_of_next: number of tokens of the next document that are already in shards.
        shards: finished shards, in order.
    """

    settings: dict[str, Any]
    documents: int = 0
    tokens_of_next: int = 0
    shards: list[ShardRecord] = []


class ShardWriter:
    """Writes documents as shards, in order. The shards move to their final names when all of them are finished."""

    def __init__(self, out: Path, settings: dict[str, Any], row_length: int, rows_per_shard: int) -> None:
        """
        Args:
            settings: settings that determine the content of the shards; a resumed job must have the same settings.
            row_length: tokens per row.

        Raises:
            DataError: `out` holds the shards of another job, or cannot be read or written.
        """
        self._out, self._row_length, self._rows_per_shard = out, row_length, rows_per_shard
        self.is_complete = (out / MANIFEST).exists()
        if self.is_complete:
            # an earlier start may have been interrupted after it wrote the manifest
            shutil.rmtree(out / _PARTIAL, ignore_errors=True)
        else:
            self._make_directory()
        self.progress = self._read(settings)
        #: for each pending document, its remaining tokens and the number of its tokens that are already in shards
        self._buffer: deque[tuple[npt.NDArray[np.int32], int]] = deque()
        self._buffered = 0
        self._in_shards = self.progress.tokens_of_next

    def add(self, tokens: npt.NDArray[np.int32]) -> None:
        """Add one document, and write each shard that is full.

        After a resume, the tokens of the first document that are already in shards are skipped.

        Raises:
            DataError: a shard cannot be written.
            OSError: the progress file cannot be written.
        """
        self._buffer.append((tokens[self._in_shards :], self._in_shards))
        self._buffered += len(tokens) - self._in_shards
        self._in_shards = 0
        while self._buffered >= self._row_length * self._rows_per_shard:
            self._write(self._rows_per_shard)

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the remaining rows, move the shards to their final names, and write the manifest last.

        Tokens that do not fill a row are dropped. The manifest records their number.

        Args:
            facts: additional entries of the manifest.

        Raises:
            DataError: a shard cannot be written.
            OSError: a shard cannot be moved, or the progress file or the manifest cannot be written.
        """
        if rows := self._buffered // self._row_length:
            self._write(rows)
        shards = self.progress.shards
        names = [f"data/train-{number:05d}-of-{len(shards):05d}.parquet" for number in range(len(shards))]
        (self._out / "data").mkdir(exist_ok=True)
        for number, name in enumerate(names):
            # an earlier start may have been interrupted after it moved some of the shards
            if (partial := self._partial(number)).exists():
                partial.rename(self._out / name)
        manifest = {
            **self.progress.settings,
            **facts,
            "dropped_tokens": self._buffered,
            "rows": sum(shard.rows for shard in shards),
            "shards": {name: shard.model_dump() for name, shard in zip(names, shards, strict=True)},
        }
        replace_text(self._out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        self.is_complete = True
        (self._out / _PARTIAL / _PROGRESS).unlink()
        (self._out / _PARTIAL).rmdir()

    def _read(self, settings: dict[str, Any]) -> Progress:
        path = self._out / (MANIFEST if self.is_complete else f"{_PARTIAL}/{_PROGRESS}")
        if not path.exists():
            return Progress(settings=settings)
        try:
            content = json.loads(path.read_text())
            found = Progress(settings=content) if self.is_complete else Progress.model_validate(content)
        except (ValueError, ValidationError) as error:
            raise DataError(f"{path} cannot be read ({error}); remove {self._out} to start again") from error
        changed = [name for name, value in settings.items() if not _is_same(name, found.settings.get(name), value)]
        if changed:
            differences = "; ".join(
                "the files are different or were changed"
                if name == "files"
                else f"{name} was {found.settings.get(name)!r}, now {settings[name]!r}"
                for name in changed
            )
            raise DataError(
                f"{self._out} holds shards of another job: {differences}. Choose another --out, or remove it"
            )
        return found

    def _write(self, n_rows: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        remaining = n_rows * self._row_length
        values, done, part = [], 0, 0
        while remaining:
            tokens, in_shards = self._buffer.popleft()
            taken = tokens[:remaining]
            values.append(taken)
            remaining -= len(taken)
            if len(taken) < len(tokens):
                part = in_shards + len(taken)
                self._buffer.appendleft((tokens[len(taken) :], part))
            else:
                done += 1
        number = len(self.progress.shards)
        offsets = np.arange(0, (n_rows + 1) * self._row_length, self._row_length, dtype=np.int32)
        rows = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values), type=pa.int32()))
        path = self._partial(number)
        try:
            parquet.write_table(pa.table({TOKEN_COLUMN: rows}), path, use_dictionary=False)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror or error}); free some space and run the command again"
            ) from error
        self._buffered -= n_rows * self._row_length
        self.progress = Progress(
            settings=self.progress.settings,
            documents=self.progress.documents + done,
            tokens_of_next=part,
            shards=[*self.progress.shards, ShardRecord(rows=n_rows, sha256=digest)],
        )
        replace_text(self._out / _PARTIAL / _PROGRESS, self.progress.model_dump_json() + "\n")

    def _make_directory(self) -> None:
        try:
            (self._out / _PARTIAL).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"--out: cannot create {self._out} ({error.strerror}); choose a writable directory"
            ) from error

    def _partial(self, number: int) -> Path:
        return self._out / _PARTIAL / f"{number:05d}.parquet"


def _is_same(name: str, was: Any, now: Any) -> bool:
    if name == "files" and isinstance(was, dict):
        # an earlier version recorded only the names and sizes of the files
        parts = [entry.rsplit(" ", 2) for entry in now]
        return len(was) == len(now) and was == {Path(path).name: int(size) for path, size, _ in parts}
    return bool(was == now)
