"""Writes small files atomically, and appends to files that survive a full disk."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Replace a file by renaming a temporary file. Readers never see a partial file, even after a crash.

    Raises:
        OSError: the file cannot be written; the error names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write_durably(partial, text.encode())
    partial.replace(path)
    sync_directory(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file and sync it to the disk.

    Raises:
        OSError: the file cannot be written; the error names the file.
    """
    with add_path_to_errors(path), path.open("wb", buffering=0) as file:
        while content:
            content = content[file.write(content) :]
        os.fsync(file.fileno())


def may_exist(path: Path) -> bool:
    """Return whether a path exists or its state is unknown, for example on a stale mount."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Add the path to errors of the file system, because errors on an open file do not name it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync_directory(directory: Path) -> None:
    """Sync the entries of a directory to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with add_path_to_errors(directory):
            os.fsync(handle)
    finally:
        os.close(handle)


class RetryingFile:
    """An append-only text file. Text that cannot be written stays in memory until it can. Thread-safe."""

    def __init__(self, path: Path, on_problem: Callable[[OSError], None]) -> None:
        """
        Args:
            on_problem: called with the first error after a successful write.

        Raises:
            OSError: the file cannot be opened.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._on_problem = path, on_problem
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._unwritten = bytearray()
        self._has_problem = False
        self._lock = threading.RLock()

    def append(self, text: str) -> None:
        """Append a text. An error is not raised; it goes to `on_problem`."""
        with self._lock:
            self._unwritten += text.encode(errors="backslashreplace")
            try:
                self._write()
            except OSError as error:
                if not self._has_problem:
                    self._has_problem = True
                    self._on_problem(error)

    def sync(self) -> None:
        """Write all text and sync the file to the disk.

        Raises:
            OSError: some text cannot be written, or the sync fails; the error names the file.
        """
        with self._lock:
            self._write()
        with add_path_to_errors(self._path):
            os.fsync(self._handle)

    def close(self) -> int:
        """Close the file.

        Returns:
            the number of bytes that could not be written and are lost.
        """
        with self._lock:
            with suppress(OSError):
                self._write()
            os.close(self._handle)
            return len(self._unwritten)

    def _write(self) -> None:
        with add_path_to_errors(self._path):
            while self._unwritten:
                del self._unwritten[: os.write(self._handle, self._unwritten)]
        self._has_problem = False
