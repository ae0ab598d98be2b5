"""Converts a parquet file of token rows to an array that can be memory-mapped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.data.input_files import TOKEN_COLUMN, check_type
from pico_ds.errors import DataError, describe_os_error

#: rows that are decoded at once; limits the memory to about 34 MB if each row holds 2,049 tokens of 64 bits
_BATCH_ROWS = 2048


@dataclass(frozen=True)
class RowFormat:
    """Required format of the rows of a shard.

    Attributes:
        sequence_length: tokens predicted per training row; a row of the file holds a multiple of it, plus one token.
        vocab_size: number of entries of the tokenizer.
    """

    sequence_length: int
    vocab_size: int

    @property
    def dtype(self) -> npt.DTypeLike:
        """Type of the decoded tokens: uint16 if the vocabulary fits, else uint32."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32


def convert_shard(path: Path, name: str, expected: RowFormat, target: Path) -> None:
    """Check every row of a parquet file and write the rows `[n_rows, tokens]` as a .npy file.

    Args:
        name: name of the shard, used in messages.

    Raises:
        DataError: the file cannot be opened or is not parquet, its token column is missing or has another type, a row
            has another length, or a token is not in the vocabulary.
        OSError: the rows cannot be read from disk, or `target` cannot be written.
    """
    with _token_file(path, name) as file:
        _convert(file, name, expected, target)


def check_footer(path: Path, name: str) -> int:
    """Check that a parquet file has a token column and return its number of rows, without reading the rows.

    Raises:
        DataError: the file cannot be opened or is not parquet, or its token column is missing or has another type.
    """
    with _token_file(path, name) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _token_file(path: Path, name: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        opened = parquet.ParquetFile(path)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {describe_os_error(error, path)}") from error
    except (pyarrow.ArrowException, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{name} cannot be read as parquet: {error}") from error
    try:
        with opened as file:
            names = file.schema_arrow.names
            if TOKEN_COLUMN not in names:
                raise DataError(
                    f"{name} has the columns {', '.join(names)}, but token shards have {TOKEN_COLUMN!r}; "
                    "scripts/prepare_data.py converts text to token shards"
                )
            check_type(name, TOKEN_COLUMN, file.schema_arrow.field(TOKEN_COLUMN).type)
            yield file
    except (pyarrow.ArrowException, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{name} cannot be read as parquet: {error}") from error


def _convert(file: Any, name: str, expected: RowFormat, target: Path) -> None:
    import pyarrow.compute as compute

    n_rows, first, rows = file.metadata.num_rows, 0, None
    for batch in file.iter_batches(_BATCH_ROWS, columns=[TOKEN_COLUMN]):
        column = batch.column(0)
        if len(column) == 0:
            continue
        lengths = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        width = int(lengths[0]) if rows is None else rows.shape[1]
        if (width - 1) % expected.sequence_length or width == 1:
            raise DataError(_wrong_length(name, first, width, expected))
        if (other := np.flatnonzero(lengths != width)).size:
            raise DataError(_wrong_length(name, first + int(other[0]), int(lengths[other[0]]), expected, width))
        values = column.flatten()
        tokens = values.to_numpy(zero_copy_only=False).reshape(len(column), width)
        bad = values.null_count > 0 or tokens.min() < 0 or tokens.max() >= expected.vocab_size
        if bad:
            raise DataError(_wrong_token(name, first, tokens, expected))
        if rows is None:
            rows = np.lib.format.open_memmap(target, "w+", dtype=np.dtype(expected.dtype), shape=(n_rows, width))
        rows[first : first + len(column)] = tokens
        first += len(column)
    if rows is None:
        np.save(target, np.zeros((0, expected.sequence_length + 1), dtype=expected.dtype))
    else:
        rows.flush()


def _wrong_length(name: str, row: int, length: int, expected: RowFormat, width: int | None = None) -> str:
    row_length = expected.sequence_length + 1
    if width is None:
        return (
            f"{name}, row {row}: {length:,} tokens; rows must have data.sequence_length + 1 = {row_length:,} tokens, "
            "or a multiple of data.sequence_length plus one; set data.sequence_length to a divisor of the length minus "
            "one"
        )
    return (
        f"{name}, row {row}: {length:,} tokens, but the rows before it have {width:,}; all rows of a shard must have "
        "one length: repair or remove the file (data.validate: full finds these rows before training)"
    )


def _wrong_token(name: str, first: int, tokens: npt.NDArray[Any], expected: RowFormat) -> str:
    # a null becomes NaN, for which every comparison is false, so the test negates the valid range
    row, place = np.argwhere(~((tokens >= 0) & (tokens < expected.vocab_size)))[0].tolist()
    found = tokens[row, place]
    shown = "no token" if np.isnan(found) else f"token {int(found):,}"
    return (
        f"{name}, row {first + row}: {shown} at position {place}, but the tokenizer has {expected.vocab_size:,} "
        "entries; set data.tokenizer to the tokenizer that made the shards"
    )


def open_rows(path: Path) -> npt.NDArray[Any]:
    """Return the rows that `convert_shard` wrote, memory-mapped.

    An array without rows is loaded instead, because it cannot be mapped.
    """
    rows = np.lib.format.open_memmap(path, mode="r") if os.path.getsize(path) > _header_bytes(path) else np.load(path)  # noqa: PTH202
    assert rows.ndim == 2, f"{path} holds an array of shape {rows.shape}"
    return rows


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()
