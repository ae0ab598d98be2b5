"""Texts to judge a model by: local files, or a dataset of the hub, by domain."""

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np

from pico_ds.config import PerplexityConfig
from pico_ds.data.input_files import TOKEN_COLUMN, Columns, Document, read_rows
from pico_ds.errors import DataError

_TEXT_COLUMN = "evaluation.perplexity.text_column"


def read_texts(config: PerplexityConfig) -> Iterator[tuple[str, Document]]:
    """Domain, and text or token ids, of every row that holds any.

    The domain is what `config.domain_column` says, else the file's name without its suffix, else the subset's name.

    Raises:
        DataError: a set that cannot be reached or read, or one without the columns.
    """
    assert config.data is not None
    columns = Columns(config.text_column, config.domain_column, _TEXT_COLUMN)
    files = _local_files(config.data)
    for path in files:
        if path.stat().st_size == 0:
            raise DataError(f"evaluation.perplexity.data: {path} is empty; give a file with text, or leave it out")
        for row in read_rows(path, columns):
            yield row.domain or path.stem, row.document
    if not files:
        yield from _from_hub(config, config.data)


def _local_files(source: str) -> list[Path]:
    """The files that a path or a glob names; none where it names no file."""
    if has_magic(source):
        found = sorted(Path(one) for one in glob(source, recursive=True))  # noqa: PTH207  absolute globs
        if not found:
            raise DataError(f"evaluation.perplexity.data: no file matches {source!r} (looked in {Path.cwd()})")
        return found
    return [Path(source)] if Path(source).is_file() else []


def _from_hub(config: PerplexityConfig, source: str) -> Iterator[tuple[str, Document]]:
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError

    sets: list[tuple[str, Any]] = []
    try:
        for subset in [config.subset] if config.subset else get_dataset_config_names(source):
            sets.append((subset, load_dataset(source, subset, split=config.split)))
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"evaluation.perplexity.data: {source!r} is no local file, and as a dataset of the hub it cannot be read: "
            f"{error}. Check the name, evaluation.perplexity.subset and split, the network, and for a gated set "
            "$HF_TOKEN; or write null"
        ) from error
    for name, rows in sets:
        names = rows.column_names
        column = TOKEN_COLUMN if TOKEN_COLUMN in names else config.text_column
        if column not in names:
            raise DataError(
                f"{_TEXT_COLUMN}: {source} has the columns {', '.join(names)}; got {config.text_column!r}: name the "
                f"one that holds the text (or give token ids as {TOKEN_COLUMN})"
            )
        has_domains = config.domain_column in names
        for number, row in enumerate(rows.select_columns([column, config.domain_column] if has_domains else [column])):
            document = _document(row[column], f"{source}, {name}, row {number}: {column}")
            if document is not None:
                yield str(row[config.domain_column]) if has_domains else name, document


def _document(value: Any, where: str) -> Document | None:
    """A text, or token ids; None where there is nothing."""
    if value is None or (isinstance(value, str | list) and not value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, int) for one in value):
        return np.asarray(value, dtype=np.int64)
    raise DataError(f"evaluation.perplexity.data: {where} is {value!r:.40}; expected a text, or a list of token ids")
