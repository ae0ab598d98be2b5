"""Reads safetensors files, and compares every chunk with its hash before its bytes are used.

The safetensors library cannot tell whether the bytes that it reads are the bytes that were written.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from pico_ds.checkpoint.file_hashes import CHUNK_BYTES, FileRecord
from pico_ds.checkpoint.safetensors_writer import DTYPE_NAMES
from pico_ds.errors import CheckpointError

#: advice in messages about damaged checkpoints
RECOVER = "resume from another checkpoint (checkpointing.resume: auto finds the newest intact one, or give a step)"
#: longest header that the safetensors library reads
_MAX_HEADER_BYTES = 100_000_000
_ITEM_BYTES = {name: dtype.itemsize for dtype, name in DTYPE_NAMES.items()}


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. A pipe or a device raises OSError, because reading it could block forever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb", buffering=0)


class VerifiedFile:
    """Reads ranges of a file. Every chunk of a range is compared with its hash first."""

    def __init__(self, path: Path, record: FileRecord) -> None:
        """
        Raises:
            CheckpointError: the file cannot be read, or has another size than recorded.
        """
        self.path, self._record = path, record
        self._cached = -1
        self._buffer = memoryview(bytearray())
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {RECOVER}") from error
        size = os.fstat(self._file.fileno()).st_size
        if size != record.size_bytes:
            self._file.close()
            raise CheckpointError(f"{path}: has {size} bytes instead of {record.size_bytes}; {RECOVER}")

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on.

        Raises:
            CheckpointError: the file cannot be read, is too short, or its content has changed.
        """
        position, end = start, start + len(out)
        if start < 0 or end > self._record.size_bytes:
            raise CheckpointError(
                f"{self.path}: has {self._record.size_bytes} bytes, so bytes {start} to {end} do not exist; {RECOVER}"
            )
        while position < end:
            number, within = divmod(position, CHUNK_BYTES)
            size = min(CHUNK_BYTES, self._record.size_bytes - number * CHUNK_BYTES)
            target = out[position - start : position - start + size - within]
            if within == 0 and len(target) == size:
                self._read_chunk(number, target)
            else:
                if self._cached != number:
                    self._cached = -1
                    if len(self._buffer) < size:
                        self._buffer = memoryview(bytearray(size))
                    self._read_chunk(number, self._buffer[:size])
                    self._cached = number
                target[:] = self._buffer[within : within + len(target)]
            position += len(target)

    def _read_chunk(self, number: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._file.fileno(), [out[done:]], number * CHUNK_BYTES + done)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read ({error.strerror}); {RECOVER}") from error
            if count == 0:
                raise CheckpointError(f"{self.path}: has fewer than {self._record.size_bytes} bytes; {RECOVER}")
            done += count
        if xxhash.xxh3_128_hexdigest(out) != self._record.chunk_hashes[number]:
            raise CheckpointError(
                f"{self.path}: bytes {number * CHUNK_BYTES} to {number * CHUNK_BYTES + len(out)} have changed since "
                f"they were written (their hash differs); {RECOVER}"
            )

    def verify(self, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Compare the whole file with its hashes.

        Args:
            on_bytes: called with the number of bytes compared since the last call.

        Raises:
            CheckpointError: see `read_into`.
        """
        buffer = memoryview(bytearray(min(CHUNK_BYTES, self._record.size_bytes)))
        for number, start in enumerate(range(0, self._record.size_bytes, CHUNK_BYTES)):
            size = min(CHUNK_BYTES, self._record.size_bytes - start)
            self._read_chunk(number, buffer[:size])
            on_bytes(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class TensorPlace:
    """Position of a tensor in a file.

    Attributes:
        dtype: name in the safetensors format, such as "F32".
        start: offset of the first byte from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def read_header(file: VerifiedFile) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """Return the tensors of a file by name, and its metadata.

    Raises:
        CheckpointError: the file is not in the safetensors format.
    """
    length = bytearray(8)
    file.read_into(0, memoryview(length))
    size = int.from_bytes(length, "little")
    if size > _MAX_HEADER_BYTES or 8 + size > file._record.size_bytes:
        raise CheckpointError(f"{file.path}: is not a safetensors file (its header claims {size} bytes); {RECOVER}")
    text = bytearray(size)
    file.read_into(8, memoryview(text))
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        return dict(_places(header, 8 + size, file._record.size_bytes)), dict(metadata)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: is not a safetensors file ({error}); {RECOVER}") from error


def _places(header: dict[str, Any], data_start: int, file_size: int) -> Iterator[tuple[str, TensorPlace]]:
    """
    Raises:
        ValueError: the entries have gaps or overlap, or the size of an entry does not match its shape.
    """
    filled = 0
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        start, end = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if not all(type(number) is int and number >= 0 for number in (start, end - start, *shape)):
            raise ValueError(f"{name!r} has shape {list(shape)} and data_offsets {[start, end]}")
        if start != filled or (dtype in _ITEM_BYTES and end - start != math.prod(shape) * _ITEM_BYTES[dtype]):
            raise ValueError(
                f"{name!r} is {dtype} of shape {list(shape)} at bytes {start} to {end}, expected a start at {filled}"
            )
        filled = end
        yield name, TensorPlace(dtype, shape, data_start + start, end - start)
    if data_start + filled != file_size:
        raise ValueError(f"its entries end at byte {data_start + filled} of {file_size}")
