"""From a parquet file of token rows to a memory-mapped array."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.data.input_files import TOKEN_COLUMN, check_type
from pico_ds.errors import DataError

#: rows that are decoded at once, which bounds the memory: 33 MB of a row of 2,049 tokens of 64 bits
_BATCH_ROWS = 2048


@dataclass(frozen=True)
class RowFormat:
    """What the rows of a shard must be.

    Attributes:
        sequence_length: tokens predicted in a row of training; rows of the file hold a multiple of it, and one more.
        vocab_size: entries of the tokenizer.
    """

    sequence_length: int
    vocab_size: int

    @property
    def dtype(self) -> npt.DTypeLike:
        """The smallest that holds a token."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32


def convert_shard(path: Path, name: str, expected: RowFormat, target: Path) -> None:
    """Write the rows `[n_rows, tokens]` of a parquet file as a .npy file; every row is checked.

    Args:
        name: of the shard, in messages.

    Raises:
        DataError: no parquet, another column, a row of another length, or a token beyond the vocabulary.
        OSError: it cannot be written.
    """
    with _token_file(path, name) as file:
        _convert(file, name, expected, target)


def check_footer(path: Path, name: str) -> int:
    """The number of rows of a parquet file that has the column of tokens; its rows are not read.

    Raises:
        DataError: no parquet, or another column.
    """
    with _token_file(path, name) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _token_file(path: Path, name: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if TOKEN_COLUMN not in names:
                raise DataError(
                    f"{name} has the columns {', '.join(names)}, but token shards have {TOKEN_COLUMN!r}; "
                    "scripts/prepare_data.py makes such shards of text"
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
    wanted = expected.sequence_length + 1
    if width is None:
        return (
            f"{name}, row {row}: {length:,} tokens; rows must hold data.sequence_length + 1 = {wanted:,} tokens, or a "
            "multiple of data.sequence_length and one more; set data.sequence_length to what divides them"
        )
    return (
        f"{name}, row {row}: {length:,} tokens, where the rows before it hold {width:,}; all rows of a shard are "
        "of one length: mend or leave out the file (data.validate: full looks for such rows before training)"
    )


def _wrong_token(name: str, first: int, tokens: npt.NDArray[Any], expected: RowFormat) -> str:
    # a null becomes nan, which is not below anything
    row, place = np.argwhere(~((tokens >= 0) & (tokens < expected.vocab_size)))[0].tolist()
    found = tokens[row, place]
    shown = "no token" if np.isnan(found) else f"token {int(found):,}"
    return (
        f"{name}, row {first + row}: {shown} at position {place}, but the tokenizer has {expected.vocab_size:,} "
        "entries; set data.tokenizer to the one that made the shards"
    )


def open_rows(path: Path) -> npt.NDArray[Any]:
    """Rows that `convert_shard` wrote, memory-mapped; nothing can be mapped where there are none."""
    rows = np.lib.format.open_memmap(path, mode="r") if os.path.getsize(path) > _header_bytes(path) else np.load(path)  # noqa: PTH202
    assert rows.ndim == 2, f"{path} holds an array of shape {rows.shape}"
    return rows


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()
