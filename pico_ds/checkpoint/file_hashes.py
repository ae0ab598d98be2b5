"""Sizes and chunk hashes of files."""

import os
from dataclasses import dataclass
from pathlib import Path

import xxhash

#: size of the chunks that are hashed separately [bytes]
CHUNK_BYTES = 8 * 2**20
#: name of the hash in the index; `xxh128sum` prints the same digits
HASH_NAME = "xxh3_128"


@dataclass(frozen=True)
class FileRecord:
    """Size and hashes of a file.

    Attributes:
        size_bytes: length of the file.
        chunk_hashes: hash of each chunk of CHUNK_BYTES; the last chunk may be shorter.
    """

    size_bytes: int
    chunk_hashes: tuple[str, ...]


class ChunkHasher:
    """Hashes a stream of bytes chunk by chunk."""

    def __init__(self) -> None:
        self._chunk, self._filled = xxhash.xxh3_128(), 0
        self._size, self._done = 0, list[str]()

    def update(self, data: memoryview) -> None:
        """Add bytes."""
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
        """Return the size and hashes of all bytes so far. This ends the last chunk."""
        if self._filled:
            self._close_chunk()
        return FileRecord(self._size, tuple(self._done))


def synced_file_record(path: Path) -> FileRecord:
    """Sync a file to the disk, and return its size and hashes."""
    hasher, buffer = ChunkHasher(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.record()
