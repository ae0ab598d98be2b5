"""Safetensors files, written and read as streams, with a hash of every chunk.

The library writes a file from tensors that are all in memory, and cannot say whether the bytes that it reads are those
that were written. Here a file may be larger than memory, and nothing is handed out before its hash was compared. The
files open with the library like any other.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from pico_ds.errors import CheckpointError

#: bytes of a chunk that is hashed on its own
CHUNK_BYTES = 8 * 2**20
#: the hash, as the index names it; `xxh128sum` prints the same digits
HASH_NAME = "xxh3_128"
#: the longest header that the safetensors library reads
_MAX_HEADER_BYTES = 100_000_000

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ITEM_BYTES = {name: dtype.itemsize for dtype, name in _DTYPE_NAMES.items()}


@dataclass(frozen=True)
class FileRecord:
    """Size and hashes of a file.

    Attributes:
        size_bytes: length of the file.
        chunk_hashes: of every CHUNK_BYTES, the last may be shorter.
    """

    size_bytes: int
    chunk_hashes: tuple[str, ...]


class _ChunkHasher:
    def __init__(self) -> None:
        self._chunk, self._filled = xxhash.xxh3_128(), 0
        self._size, self._done = 0, list[str]()

    def update(self, data: memoryview) -> None:
        start = 0
        while start < len(data):
            piece = data[start : start + CHUNK_BYTES - self._filled]
            self._chunk.update(piece)
            self._filled += len(piece)
            start += len(piece)
            if self._filled == CHUNK_BYTES:
                self._close_chunk()
        self._size += len(data)

    def _close_chunk(self) -> None:
        self._done.append(self._chunk.hexdigest())
        self._chunk, self._filled = xxhash.xxh3_128(), 0

    def record(self) -> FileRecord:
        if self._filled:
            self._close_chunk()
        return FileRecord(self._size, tuple(self._done))


def synced_file_record(path: Path) -> FileRecord:
    """Size and hashes of a file that exists, and that is on the disk afterwards."""
    hasher, buffer = _ChunkHasher(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.record()


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; a pipe or a device, on which a reader could wait without end, is an OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb", buffering=0)


class SafetensorsWriter:
    """Writes one safetensors file front to back; the file is on disk when `finish` returns.

    Tensors are appended as flat pieces, in the order of `entries`; pieces need not end where tensors do.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        """
        Args:
            entries: type and shape by name, in the order in which the data will come.

        Raises:
            CheckpointError: the file cannot be written.
        """
        self.path, self._hasher, self._written = path, _ChunkHasher(), 0
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0
        for name, (dtype, shape) in entries.items():
            start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        self._data_bytes = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._write(memoryview(len(text).to_bytes(8, "little") + text))

    def append(self, values: Tensor) -> None:
        """Write the next values: contiguous, in host memory, of the entry's type."""
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
        """Bring the file to the disk."""
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


class VerifiedFile:
    """Reads ranges of a file; every chunk that a range touches is compared with its hash first."""

    def __init__(self, path: Path, record: FileRecord) -> None:
        """
        Raises:
            CheckpointError: a file that is missing or has another size.
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
            raise CheckpointError(f"{path}: has {size} bytes, but {record.size_bytes} were written; {RECOVER}")

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on.

        Raises:
            CheckpointError: bytes that are not those that were written.
        """
        position, end = start, start + len(out)
        if start < 0 or end > self._record.size_bytes:
            raise CheckpointError(
                f"{self.path}: bytes {start} to {end} were asked for, but it has {self._record.size_bytes}; {RECOVER}"
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
                raise CheckpointError(f"{self.path}: ends before its {self._record.size_bytes} bytes; {RECOVER}")
            done += count
        if xxhash.xxh3_128_hexdigest(out) != self._record.chunk_hashes[number]:
            raise CheckpointError(
                f"{self.path}: bytes {number * CHUNK_BYTES} to {number * CHUNK_BYTES + len(out)} are not those that "
                f"were written (their hash differs); {RECOVER}"
            )

    def verify(self, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Compare the whole file with its hashes.

        Args:
            on_bytes: called with the number of bytes that were compared since its last call.

        Raises:
            CheckpointError: as `read_into`.
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
    """Where the data of an entry stands in its file.

    Attributes:
        start: first byte, counted from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def read_header(file: VerifiedFile) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """Entries by name, and the metadata.

    Raises:
        CheckpointError: a file that is not in the safetensors format.
    """
    length = bytearray(8)
    file.read_into(0, memoryview(length))
    size = int.from_bytes(length, "little")
    if size > _MAX_HEADER_BYTES or 8 + size > file._record.size_bytes:
        raise CheckpointError(f"{file.path}: is not a safetensors file (its header would have {size} bytes); {RECOVER}")
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
        ValueError: entries that do not tile the data, as the format demands, or whose size is not that of their shape.
    """
    filled = 0
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        start, end = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if not all(type(number) is int and number >= 0 for number in (start, end - start, *shape)):
            raise ValueError(f"{name!r} has shape {list(shape)} and data_offsets {[start, end]}")
        if start != filled or (dtype in _ITEM_BYTES and end - start != math.prod(shape) * _ITEM_BYTES[dtype]):
            raise ValueError(f"{name!r} is {dtype} of shape {list(shape)} at bytes {start} to {end}; {filled} was next")
        filled = end
        yield name, TensorPlace(dtype, shape, data_start + start, end - start)
    if data_start + filled != file_size:
        raise ValueError(f"its entries end at byte {data_start + filled} of {file_size}")


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """What to say where the file system refuses.

    Args:
        path: taken where the error names none.
    """
    # of a copy, the first name is that of the source
    name = error.filename2 or error.filename or path
    return CheckpointError(
        f"{name}: cannot be written ({error.strerror}); free space or make the directory writable, and start the run "
        "again: it goes on from its last complete checkpoint"
    )


#: what to do with a checkpoint that is damaged
RECOVER = "resume from another checkpoint (checkpointing.resume: auto finds the newest good one, or name a step)"
