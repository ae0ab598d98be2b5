"""Small files that are there whole or not at all, whatever happens to the machine."""

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that neither a reader nor a crash ever sees a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write_durably(partial, text.encode())
    partial.replace(path)
    sync_directory(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file and bring it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
