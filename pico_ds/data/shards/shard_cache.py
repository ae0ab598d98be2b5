"""Shards on the disk of a node.

A shard is fetched once for all ranks of the node, before it is needed. Old shards are removed to limit the disk space.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
from filelock import FileLock

from pico_ds.data.background_call import Background
from pico_ds.data.shards.shard_decoding import RowFormat, convert_shard, open_rows
from pico_ds.data.shards.shard_sources import ShardFiles
from pico_ds.errors import DataError

logger = logging.getLogger("pico_ds")


@dataclass(frozen=True)
class Shard:
    """An open shard.

    Attributes:
        number: position of the shard in the list of files.
        name: name of the file, used in messages.
        rows: `[n_rows, tokens]`, memory-mapped.
    """

    number: int
    name: str
    rows: npt.NDArray[Any]


class ShardCache:
    """Opens shards by number.

    All processes of a node may use a cache in the same directory. The first process that needs a shard fetches and
    converts the shard under a lock, and the other processes use the result. If a shard is removed while a process reads
    it, the process can read the shard until it closes the file.
    """

    def __init__(self, files: ShardFiles, expected: RowFormat, directory: Path, cache_gib: float) -> None:
        """
        Args:
            directory: directory that is used only for this corpus.
            cache_gib: above this size, the least recently used shards are removed [GiB].
        """
        self.files, self.expected, self._directory = files, expected, directory
        self._cache_bytes = int(cache_gib * 2**30)
        self._ahead: dict[int, Background[None]] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def open(self, number: int, then: Iterable[int] = ()) -> Shard:
        """Return a shard. The shard is fetched if it is not in the cache.

        Args:
            then: numbers of the shards that are needed next; these shards are fetched in the background.

        Raises:
            DataError: the shard cannot be fetched, or its rows cannot be used.
        """
        fetching = self._ahead.pop(number, None)
        if fetching is not None:
            fetching.join()
        for other in then:
            if other not in self._ahead:
                self._ahead[other] = Background(partial(self._fetch_ahead, other), f"shard {other}")
        # if the background fetch failed, for example because of the network, this fetches the shard again
        return self._open(number)

    def _fetch_ahead(self, number: int) -> None:
        try:
            self._fetch(number)
        except DataError as error:
            logger.warning(
                "warning: could not fetch a shard in advance; it is fetched again when it is needed: %s", error
            )

    def _fetch(self, number: int) -> Path:
        """Return the path of the converted shard. The shard is fetched and converted if the file does not exist."""
        path = self._directory / f"{number:05d}.npy"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                self._make(number, path)
        return path

    def _open(self, number: int) -> Shard:
        while True:
            path = self._fetch(number)
            try:
                path.touch()
                return Shard(number, self.files.names[number], open_rows(path))
            except FileNotFoundError:
                # another process removed the file to make room after the fetch, so fetch the shard again
                continue

    def _make(self, number: int, path: Path) -> None:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=self._directory))
        try:
            (staging / "download").mkdir()
            file = self.files.fetch(number, staging / "download")
            convert_shard(file, self.files.names[number], self.expected, staging / path.name)
            (staging / path.name).rename(path)
        except OSError as error:
            raise DataError(
                f"data.cache_dir: cannot write {path} ({error.strerror or error}); choose a disk with room "
                "for data.cache_gib and one more shard"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._make_room(path)

    def _make_room(self, newest: Path) -> None:
        """Remove the least recently used shards until the cache fits its size limit. Always keep the newest shard."""
        with FileLock(self._directory / "room.lock"):
            found = []
            for path in self._directory.glob("[0-9]*.npy"):
                try:
                    state = path.stat()
                except FileNotFoundError:
                    continue
                found.append((state.st_mtime_ns, state.st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self._cache_bytes:
                    return
                if path != newest:
                    path.unlink(missing_ok=True)
                    total -= size
