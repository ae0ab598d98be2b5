"""Writes token shards like those of pretokenized datasets: parquet files with a column `input_ids`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pico_ds.data.text.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from tests.conftest import write_text_corpus


def write_shard(path: Path, rows: Sequence[Sequence[int | None] | None] | np.ndarray, dtype: str = "int32") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [None if row is None else list(row) for row in rows]
    pq.write_table(pa.table({"input_ids": pa.array(values, type=pa.list_(getattr(pa, dtype)()))}), path)
    return path


def make_tokenizer(directory: Path, texts: Sequence[str]) -> TextTokenizer:
    """Train a tokenizer without [MASK], as those of pretokenized datasets."""
    train_tokenizer(texts, 600, directory)
    return load_tokenizer(directory)


def write_shards(
    directory: Path, n_shards: int = 3, rows_per_shard: Sequence[int] = (40, 30, 35), width: int = 33
) -> tuple[list[Path], Path]:
    """Write shards of a small corpus, which is repeated as needed. Returns their paths and that of the tokenizer."""
    import json

    corpus = write_text_corpus(directory / "corpus.jsonl")
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    tokenizer = make_tokenizer(directory / "tokenizer", texts)
    tokens = [token for ids in tokenizer.encode(texts) for token in (*ids, tokenizer.end_of_text_id)]
    counts = [rows_per_shard[number % len(rows_per_shard)] for number in range(n_shards)]
    flat = np.resize(np.array(tokens), sum(counts) * width).reshape(-1, width)
    paths, first = [], 0
    for number, count in enumerate(counts):
        name = f"data/train-{number:05d}-of-{n_shards:05d}.parquet"
        paths.append(write_shard(directory / name, flat[first : first + count]))
        first += count
    return paths, directory / "tokenizer"
