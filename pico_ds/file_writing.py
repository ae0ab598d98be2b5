"""Small files that are there whole or not at all, and files that grow, whatever happens to the machine."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that neither a reader nor a crash ever sees a part.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write_durably(partial, text.encode())
    partial.replace(path)
    sync_directory(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file and bring it to the disk.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    with naming(path), path.open("wb", buffering=0) as file:
        while content:
            content = content[file.write(content) :]
        os.fsync(file.fileno())


def may_exist(path: Path) -> bool:
    """Whether something is there, or may be: a name that cannot be looked at, such as one on a stale mount, counts."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the file system the name of the file, which the system leaves out where a file is open."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with naming(directory):
            os.fsync(handle)
    finally:
        os.close(handle)


class PatientFile:
    """A text file that is appended to. What cannot be written waits in memory until it can; any thread may append."""

    def __init__(self, path: Path, on_problem: Callable[[OSError], None]) -> None:
        """
        Args:
            on_problem: called with the first error after a write that succeeded.

        Raises:
            OSError: the file cannot be opened.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._on_problem = path, on_problem
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._waiting = bytearray()
        self._is_behind = False
        self._lock = threading.RLock()

    def append(self, text: str) -> None:
        """Write a text after what is there, and after what waits."""
        with self._lock:
            self._waiting += text.encode(errors="backslashreplace")
            try:
                self._write()
            except OSError as error:
                if not self._is_behind:
                    self._is_behind = True
                    self._on_problem(error)

    def sync(self) -> None:
        """Bring all of it to the disk.

        Raises:
            OSError: some of it still waits, or the disk fails; the error names the file.
        """
        with self._lock:
            self._write()
        with naming(self._path):
            os.fsync(self._handle)

    def close(self) -> int:
        """Close the file.

        Returns:
            the bytes that could not be written, and are lost.
        """
        with self._lock:
            with suppress(OSError):
                self._write()
            os.close(self._handle)
            return len(self._waiting)

    def _write(self) -> None:
        with naming(self._path):
            while self._waiting:
                del self._waiting[: os.write(self._handle, self._waiting)]
        self._is_behind = False
