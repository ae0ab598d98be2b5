"""Reads files of text or token ids (.txt, .jsonl, .parquet). docs/data.md has a table of the rules."""

import codecs
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.errors import DataError

logger = logging.getLogger("pico_ds")

#: a text or an array of token ids
Document = str | npt.NDArray[np.int64]

#: field or column that holds token ids; a row with token ids needs no text
TOKEN_COLUMN = "input_ids"  # noqa: S105
_MAX_TOKEN_ID = 2**63 - 1
SUFFIXES = (".txt", ".jsonl", ".parquet")
#: byte order marks of unsupported encodings; UTF-32 comes first, because its little-endian mark starts with UTF-16's
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class Columns:
    """Names of the fields or columns of a row.

    Attributes:
        text: field or column that holds the text.
        domain: field or column that names the row's domain.
        setting: configuration key or command-line option that sets `text`; used in messages.
    """

    text: str = "text"
    domain: str | None = None
    setting: str = "data.text_column"


@dataclass(frozen=True)
class Row:
    """A document that is not empty, and its domain.

    Attributes:
        domain: None if the file does not name a domain.
    """

    document: Document
    domain: str | None = None


def read_rows(path: Path, columns: Columns, by_paragraph: bool = False) -> Iterator[Row]:
    """Yield the rows of a file in order. Rows whose text or token ids are null or empty are skipped.

    Args:
        by_paragraph: if true, each block between blank lines of a .txt file is a row; otherwise the whole file is one.

    Raises:
        DataError: the file has another suffix or cannot be read, or a line or column has unexpected content.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        yield from _txt_rows(path, by_paragraph)
    elif suffix == ".jsonl":
        yield from _jsonl_rows(path, columns)
    elif suffix == ".parquet":
        yield from _parquet_rows(path, columns)
    else:
        raise DataError(f"{path} ends in {suffix!r}; files must be {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def _without_bom(data: bytes, path: Path) -> bytes:
    """Return the first bytes of a file without the UTF-8 byte order mark, which some programs write.

    Raises:
        DataError: the byte order mark is that of another encoding.
    """
    for mark, name in _OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise DataError(f"{path} is {name}; convert it to UTF-8: iconv -f {name} -t UTF-8 FILE > NEW_FILE")
    return data.removeprefix(codecs.BOM_UTF8)


def _txt_rows(path: Path, by_paragraph: bool) -> Iterator[Row]:
    data = _without_bom(path.read_bytes(), path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        logger.warning("warning: %s is not UTF-8 (byte %d); invalid bytes become U+FFFD", path, error.start)
        text = data.decode("utf-8", errors="replace")
    text = text.replace("\r\n", "\n")
    for block in text.split("\n\n") if by_paragraph else [text]:
        if block:
            yield Row(block)


def _jsonl_rows(path: Path, columns: Columns) -> Iterator[Row]:
    undecodable: list[int] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            content = _without_bom(line, path) if number == 1 else line
            if not content.strip():
                continue
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = content.decode("utf-8", errors="replace")
                undecodable.append(number)
            where = f"{path}, line {number}"
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
                raise DataError(f"{where}: not valid JSON ({reason})") from None
            if (document := _document_of(record, columns, where)) is not None:
                yield Row(document, _domain(record.get(columns.domain)))
    _warn_about_undecodable(path, "line", undecodable)


def _document_of(record: Any, columns: Columns, where: str) -> Document | None:
    """Return the text or token ids of a JSON object, or None if they are null or empty.

    Raises:
        DataError: the record is not an object, or holds neither a text nor token ids.
    """
    if isinstance(record, dict):
        if (tokens := record.get(TOKEN_COLUMN)) is not None:
            return _token_ids(tokens, where)
        if columns.text in record or TOKEN_COLUMN in record:
            text = record.get(columns.text)
            if text is None:
                return None
            if isinstance(text, str):
                # JSON can escape half of a surrogate pair, which UTF-8 cannot encode
                return text.encode("utf-8", errors="replace").decode() or None
    found = (
        ", ".join(f"{key} ({type(value).__name__})" for key, value in record.items())
        if isinstance(record, dict)
        else type(record).__name__
    )
    raise DataError(
        f"{where}: expected an object with a text in {columns.text!r} or token ids in {TOKEN_COLUMN!r}, got {found}; "
        f"set {columns.setting} to the field that holds the text"
    )


def _domain(value: Any) -> str | None:
    return None if value is None else str(value)


def _token_ids(value: Any, where: str) -> npt.NDArray[np.int64] | None:
    if not isinstance(value, list):
        raise DataError(f"{where}: {TOKEN_COLUMN!r} is {value!r:.40}, expected a list of token ids")
    for position, token in enumerate(value):
        if type(token) is not int or not 0 <= token <= _MAX_TOKEN_ID:
            raise DataError(
                f"{where}: {TOKEN_COLUMN!r} holds {token!r:.40} at position {position}, expected a token id"
            )
    return np.array(value, dtype=np.int64) if value else None


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    undecodable: list[int] = []
    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        # a row whose token ids are null may still have a text
        content_columns = [column for column in (TOKEN_COLUMN, columns.text) if column in schema.names]
        if not content_columns:
            raise DataError(
                f"{path} has the columns {', '.join(schema.names)}; expected {columns.text!r} (set {columns.setting}) "
                f"or {TOKEN_COLUMN!r} for a corpus that is already tokenized"
            )
        check_type(path, content_columns[0], schema.field(content_columns[0]).type, columns.setting)
        if len(content_columns) > 1 and not _holds_text(schema.field(columns.text).type):
            content_columns.pop()
        read = [*content_columns, *([columns.domain] if columns.domain in schema.names else [])]
        first = 0
        for batch in file.iter_batches(columns=read):
            domains = batch.column(columns.domain).to_pylist() if columns.domain in read else [None] * len(batch)
            for number, domain in enumerate(domains):
                values = ((column, batch.column(column)[number]) for column in content_columns)
                column, value = next(((name, scalar) for name, scalar in values if scalar.is_valid), ("", None))
                if value is None:
                    continue
                where = f"{path}, row {first + number}"
                document = (
                    _token_array(value, where) if column == TOKEN_COLUMN else _text(value, first + number, undecodable)
                )
                if len(document):
                    yield Row(document, _domain(domain))
            first += len(batch)
    # a damaged column name raises UnicodeDecodeError
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
    _warn_about_undecodable(path, "row", undecodable)


def _text(value: Any, number: int, undecodable: list[int]) -> str:
    import pyarrow

    try:
        text: str = value.as_py()
    except UnicodeDecodeError:
        undecodable.append(number)
        text = value.cast(pyarrow.binary()).as_py().decode("utf-8", errors="replace")
    return text


def _token_array(value: Any, where: str) -> npt.NDArray[np.int64]:
    if value.values.null_count:
        position = value.values.is_valid().to_pylist().index(False)
        raise DataError(f"{where}: {TOKEN_COLUMN!r} holds null at position {position}, expected a token id")
    tokens = np.asarray(value.values.to_numpy(zero_copy_only=False))
    bad = np.flatnonzero((tokens < 0) | (tokens > _MAX_TOKEN_ID))
    if len(bad):
        raise DataError(f"{where}: {TOKEN_COLUMN!r} holds {tokens[bad[0]]} at position {bad[0]}, expected a token id")
    return tokens.astype(np.int64)


def _warn_about_undecodable(path: Path, kind: str, numbers: list[int]) -> None:
    """Log one warning per file, because a corpus may have millions of undecodable rows."""
    if numbers:
        logger.warning(
            "warning: %s: %d %ss are not UTF-8 (the first is %s %d); invalid bytes become U+FFFD",
            path,
            len(numbers),
            kind,
            kind,
            numbers[0],
        )


def _holds_text(found: Any) -> bool:
    import pyarrow.types as types

    content = found.value_type if types.is_dictionary(found) else found
    return bool(types.is_string(content) or types.is_large_string(content) or types.is_string_view(content))


def check_type(name: object, column: str, found: Any, setting: str = "data.text_column") -> None:
    """Check that a parquet column has the expected type: lists of integers for `input_ids`, strings otherwise.

    Args:
        name: name of the file, used in messages.
        found: pyarrow type of the column.
        setting: configuration key or command-line option that names the text column; used in messages.

    Raises:
        DataError: the column has another type.
    """
    import pyarrow.types as types

    if column == TOKEN_COLUMN:
        is_list = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
        fits, expected = is_list and types.is_integer(found.value_type), "lists of integers"
    else:
        fits, expected = _holds_text(found), "strings"
    if not fits:
        hint = f"; set {setting} to the column that holds the text" if column != TOKEN_COLUMN else ""
        raise DataError(f"{name}: column {column!r} holds {found}, expected {expected}{hint}")
