"""Writes safetensors files as streams.

The safetensors library writes a file from tensors that are all in memory. This writer needs one piece at a time, and
hashes every chunk. The library can read the files.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pico_ds.checkpoint.file_hashes import CHUNK_BYTES, ChunkHasher, FileRecord
from pico_ds.errors import CheckpointError

#: torch dtype -> name in the safetensors format
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class SafetensorsWriter:
    """Writes one safetensors file from beginning to end. When `finish` returns, the file is synced to the disk.

    The data are appended as flat pieces, in the order of `entries`. A piece may cover parts of several tensors.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        """
        Args:
            entries: name -> type and shape, in the order in which the data are appended.

        Raises:
            CheckpointError: the file cannot be written.
        """
        self.path, self._hasher, self._written = path, ChunkHasher(), 0
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0
        for name, (dtype, shape) in entries.items():
            start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        self._data_bytes = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._write(memoryview(len(text).to_bytes(8, "little") + text))

    def append(self, values: Tensor) -> None:
        """Append values: a contiguous tensor in host memory, of the type of the entry."""
        data = values.reshape(-1).view(torch.uint8).numpy().data
        self._written += len(data)
        self._write(data)

    def _write(self, data: memoryview) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            piece = data[start : start + CHUNK_BYTES]
            self._hasher.update(piece)
            while piece:
                try:
                    piece = piece[self._file.write(piece) :]
                except OSError as error:
                    raise cannot_write(self.path, error) from error

    def finish(self) -> FileRecord:
        """Sync the file to the disk, and return its size and hashes."""
        assert self._written == self._data_bytes, f"{self._written} of {self._data_bytes} bytes were appended"
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return self._hasher.record()

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that cannot be written.

    Args:
        path: file to name if the error does not name one.
    """
    # for a copy, `filename` is the source
    name = error.filename2 or error.filename or path
    return CheckpointError(
        f"{name}: cannot be written ({error.strerror}); free space or make the directory writable, then run the same "
        "command again to resume from the last complete checkpoint"
    )
