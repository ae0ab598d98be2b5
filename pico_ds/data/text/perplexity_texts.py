"""Texts for the perplexity evaluation, by domain, from local files or from a dataset on the hub."""

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
    """Yield the domain and the document (text or token ids) of every row that is not empty.

    The domain is the value of `config.domain_column` if there is one. Otherwise it is the file name without its suffix
    for a local file, and the subset name for a dataset on the hub.

    Raises:
        DataError: the data cannot be reached or read, or lacks the text column.
    """
    assert config.data is not None
    columns = Columns(config.text_column, config.domain_column, _TEXT_COLUMN)
    files = _local_files(config.data)
    for path in files:
        if path.stat().st_size == 0:
            raise DataError(f"evaluation.perplexity.data: {path} is empty; use a file with text, or remove it")
        for row in read_rows(path, columns):
            yield row.domain or path.stem, row.document
    if not files:
        yield from _from_hub(config, config.data)


def _local_files(source: str) -> list[Path]:
    """Return the files that a path or a glob matches, or an empty list if a path names no file.

    Raises:
        DataError: a glob matches no file.
    """
    if has_magic(source):
        # Path.glob rejects absolute patterns
        found = sorted(Path(match) for match in glob(source, recursive=True))  # noqa: PTH207
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
            f"evaluation.perplexity.data: {source!r} is not a local file, and cannot be read as a dataset on the hub: "
            f"{error}. Check the name, evaluation.perplexity.subset and split, the network, and $HF_TOKEN for a gated "
            "dataset; or set it to null"
        ) from error
    for name, rows in sets:
        names = rows.column_names
        column = TOKEN_COLUMN if TOKEN_COLUMN in names else config.text_column
        if column not in names:
            raise DataError(
                f"{_TEXT_COLUMN}: {source} has the columns {', '.join(names)}; got {config.text_column!r}: set it to "
                f"the column that holds the text (or provide token ids in {TOKEN_COLUMN})"
            )
        has_domains = config.domain_column in names
        for number, row in enumerate(rows.select_columns([column, config.domain_column] if has_domains else [column])):
            document = _document(row[column], f"{source}, {name}, row {number}: {column}")
            if document is not None:
                domain = row[config.domain_column] if has_domains else None
                yield name if domain is None else str(domain), document


def _document(value: Any, where: str) -> Document | None:
    """Return the text or token ids of a value, or None if the value is null or empty.

    Raises:
        DataError: the value is neither a string nor a list of integers.
    """
    if value is None or (isinstance(value, str | list) and not value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(token, int) for token in value):
        return np.asarray(value, dtype=np.int64)
    raise DataError(f"evaluation.perplexity.data: {where} is {value!r:.40}; expected a string or a list of token ids")
