"""Texts to judge a model by: local files, or a dataset of the hub, by domain."""

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np

from pico_ds.config import PerplexityConfig
from pico_ds.data.documents import TOKEN_COLUMN, Document
from pico_ds.data.errors import DataError

#: what `datasets` reads a file with, by its suffix
_BUILDERS: dict[str, dict[str, Any]] = {
    ".jsonl": {"path": "json"},
    ".json": {"path": "json"},
    ".parquet": {"path": "parquet"},
    ".txt": {"path": "text", "sample_by": "document"},
}


def read_texts(config: PerplexityConfig) -> Iterator[tuple[str, Document]]:
    """Domain, and text or token ids, of every row that holds any.

    The domain is what `config.domain_column` says, else the file's name without its suffix, else the subset's name.

    Raises:
        DataError: a set that cannot be reached or read, or one without the columns.
    """
    assert config.data is not None
    files = _local_files(config.data)
    sets = _from_files(files) if files else _from_hub(config, config.data)
    for name, rows in sets:
        columns = rows.column_names
        column = TOKEN_COLUMN if TOKEN_COLUMN in columns else config.text_column
        if column not in columns:
            raise DataError(
                f"evaluation.perplexity.text_column: {config.data} has the columns {', '.join(columns)}; got "
                f"{config.text_column!r}: name the one that holds the text (or give token ids as {TOKEN_COLUMN})"
            )
        has_domains = config.domain_column in columns
        for number, row in enumerate(rows.select_columns([column, config.domain_column] if has_domains else [column])):
            document = _document(row[column], f"{config.data}, {name}, row {number}: {column}")
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
    shown = f"{value!r:.40}"
    raise DataError(f"evaluation.perplexity.data: {where} is {shown}; a text, or a list of token ids, is expected")


def _local_files(source: str) -> list[Path]:
    """The files that a path or a glob names; none where it names no file."""
    if has_magic(source):
        found = sorted(Path(one) for one in glob(source, recursive=True))  # noqa: PTH207  absolute globs
        if not found:
            raise DataError(f"evaluation.perplexity.data: no file matches {source!r} (looked in {Path.cwd()})")
        return found
    return [Path(source)] if Path(source).is_file() else []


def _from_files(files: list[Path]) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    for path in files:
        builder = _BUILDERS.get(path.suffix)
        if builder is None:
            raise DataError(
                f"evaluation.perplexity.data: {path} ends in {path.suffix!r}; give {', '.join(_BUILDERS)} files, or "
                "the id of a dataset"
            )
        if path.stat().st_size == 0:
            raise DataError(f"evaluation.perplexity.data: {path} is empty; give a file with text, or leave it out")
        try:
            rows = load_dataset(**builder, data_files=str(path), split="train")
        except (OSError, ValueError, DatasetsError) as error:
            raise DataError(f"evaluation.perplexity.data: cannot read {path}: {error.__cause__ or error}") from error
        yield path.stem, rows


def _from_hub(config: PerplexityConfig, source: str) -> Iterator[tuple[str, Any]]:
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetsError

    try:
        for subset in [config.subset] if config.subset else get_dataset_config_names(source):
            yield subset, load_dataset(source, subset, split=config.split)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"evaluation.perplexity.data: {source!r} is no local file, and as a dataset of the hub it cannot be read: "
            f"{error}. Check the name, evaluation.perplexity.subset and split, the network, and for a gated set "
            "$HF_TOKEN; or write null"
        ) from error
