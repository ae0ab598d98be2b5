"""Small files that are there whole or not at all."""

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that whoever reads it never sees a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
