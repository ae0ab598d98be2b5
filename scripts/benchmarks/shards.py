"""Measures how fast token shards are decoded, indexed and made."""

import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.config import SmlmtConfig
from pico_ds.data.shards.shard_decoding import RowFormat, convert_shard, open_rows
from pico_ds.data.shards.shard_preparation import Preparation, local_source, text_batches
from pico_ds.data.text.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from pico_ds.tasks.index.pool_word_index import TokenIndex, TokenWords
from pico_ds.tasks.index.token_word_boundaries import TokenClasses

from .sampling import random_word

#: tokens of a row, as in pico-lm/pretokenized-dolma
_ROW_TOKENS = 2049
#: different words in the generated text, and vocabulary size as in OLMo's tokenizer, so that most words are one token
_WORDS, _VOCABULARY = 60_000, 50_280
_WORDS_PER_DOCUMENT, _DOCUMENTS = 1000, 500


def measure_index(directory: Path, n_rows: int, repeats: int) -> list[dict[str, Any]]:
    """Return the speed of decoding a shard, and the speed and memory of indexing its rows on one and two threads.

    Args:
        directory: directory for the generated tokenizer and shard.
        n_rows: number of rows in the shard, which is a single pool.
        repeats: number of timings; the result has their median.
    """
    tokenizer = _tokenizer(directory)
    shard, expected = directory / "shard.parquet", RowFormat(_ROW_TOKENS - 1, tokenizer.vocab_size)
    _write_shard(shard, tokenizer, n_rows)
    decoded = directory / "shard.npy"
    seconds = _median_seconds(lambda: convert_shard(shard, shard.name, expected, decoded), repeats)
    rows = open_rows(decoded)
    sizes = {"rows": n_rows, "tokens": rows.size, "vocabulary": tokenizer.vocab_size}
    found = [{"what": "decoding", **sizes, "tokens_per_second": rows.size / seconds}]
    words = TokenWords.of(TokenClasses.of(tokenizer))
    for context in ("window", "sentence"):
        config = SmlmtConfig.model_validate({"min_word_freq": 100, "max_word_freq": 100_000, "context": context})
        for threads in (1, 2):
            seconds = _median_seconds(lambda: TokenIndex(rows, words, config, threads), repeats)  # noqa: B023
            tracemalloc.start()
            index = TokenIndex(rows, words, config, threads)
            current, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            found.append(
                {
                    "what": f"index, context: {context}",
                    "threads": threads,
                    **sizes,
                    "tokens_per_second": rows.size / seconds,
                    "bytes_per_token": (current + rows.nbytes) / rows.size,
                    "peak_bytes_per_token": (peak + rows.nbytes) / rows.size,
                    "occurrences_per_token": len(index.positions) / rows.size,
                }
            )
    return found


def measure_preparation(directory: Path, megabytes: int, repeats: int) -> list[dict[str, Any]]:
    """Return the speed of `scripts/prepare_data.py shards` and of only the tokenizer, on the same texts and cores."""
    tokenizer = _tokenizer(directory)
    corpus, workers = directory / "corpus.jsonl", os.cpu_count() or 1
    size = _write_text(corpus, 1_000_000 * megabytes)

    def prepare() -> None:
        out = directory / f"out-{time.time_ns()}"
        job = Preparation(source(), str(directory / "tokenizer"), out, _ROW_TOKENS - 1, 20_480, workers)
        job.run(lambda _: None)

    def source() -> Any:
        return local_source([str(corpus)], "text", "file")

    batches = [*text_batches(source().read(0))]
    n_tokens = 0

    def tokenize() -> None:
        nonlocal n_tokens
        n_tokens = sum(len(ids) for batch in batches for ids in tokenizer.encode(batch))

    found: list[dict[str, Any]] = []
    for what, work in (("the tokenizer's own batches", tokenize), ("prepare_data.py", prepare)):
        seconds = _median_seconds(work, repeats)
        rates = {"tokens_per_second": n_tokens / seconds, "megabytes_per_second": size / 1e6 / seconds}
        found.append({"what": what, "cores": workers, "tokens": n_tokens, "seconds": seconds, **rates})
    found[1]["share_of_tokenizer"] = found[0]["seconds"] / found[1]["seconds"]
    return found


def _median_seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def _documents() -> Iterator[str]:
    """Yield documents of random words without end. Word frequencies follow Zipf's law, as in real text."""
    rng = np.random.default_rng(0)
    words = np.array([random_word(rank) for rank in range(_WORDS)])
    weights = 1 / np.arange(1, _WORDS + 1)
    while True:
        chosen = rng.choice(words, size=_WORDS_PER_DOCUMENT, p=weights / weights.sum())
        yield ". ".join(" ".join(part) for part in np.array_split(chosen, _WORDS_PER_DOCUMENT // 20))


def _tokenizer(directory: Path) -> TextTokenizer:
    path = directory / "tokenizer"
    # the tokenizer must see every word at least once
    texts = [" ".join(random_word(rank) for rank in range(_WORDS)), *(text for _, text in zip(range(50), _documents()))]  # noqa: B905
    train_tokenizer(texts, _VOCABULARY, path)
    return load_tokenizer(path)


def _write_text(path: Path, n_bytes: int) -> int:
    written = 0
    documents = _documents()
    kept = [json.dumps({"text": next(documents)}) + "\n" for _ in range(_DOCUMENTS)]
    with path.open("w") as file:
        while written < n_bytes:
            written += file.write(kept[(written // len(kept[0])) % len(kept)])
    return written


def _write_shard(path: Path, tokenizer: TextTokenizer, n_rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    documents = _documents()
    texts = tokenizer.encode([next(documents) for _ in range(_DOCUMENTS)])
    order = np.random.default_rng(1)
    rows: list[npt.NDArray[np.int32]] = []
    stream = np.empty(0, dtype=np.int32)
    parts = [np.array([*ids, tokenizer.end_of_text_id], dtype=np.int32) for ids in texts]
    while len(rows) < n_rows:
        stream = np.concatenate([stream, *(parts[number] for number in order.permutation(len(parts)))])
        whole = len(stream) // _ROW_TOKENS
        rows += [*stream[: whole * _ROW_TOKENS].reshape(whole, _ROW_TOKENS)]
        stream = stream[whole * _ROW_TOKENS :]
    column = pa.ListArray.from_arrays(
        pa.array(np.arange(0, (n_rows + 1) * _ROW_TOKENS, _ROW_TOKENS, dtype=np.int32)),
        pa.array(np.concatenate(rows[:n_rows]), type=pa.int32()),
    )
    parquet.write_table(pa.table({"input_ids": column}), path)
