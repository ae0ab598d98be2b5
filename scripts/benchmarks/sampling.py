"""Measures how fast one core makes tasks and rows."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from pico_ds.config import parse_config
from pico_ds.data.text.text_corpus import TextCorpus, open_text_corpus
from pico_ds.tasks.index.class_words import ClassWords
from pico_ds.tasks.index.corpus_word_index import WordIndex
from pico_ds.tasks.index.token_word_boundaries import TokenClasses
from pico_ds.tasks.masked_word_tasks import SMLMT

_DOCUMENTS, _WORDS_PER_DOCUMENT, _VOCABULARY = 400, 1000, 3000


def measure_sampling(directory: Path, seconds: float) -> list[dict[str, Any]]:
    """Return the speed of making tasks and rows: one result for each of two task shapes, and one for rows.

    The shapes are those of the demo and of the pico-maml family.

    Args:
        directory: directory for a generated corpus.
        seconds: duration of each measurement [s].
    """
    results = []
    for name, shape in {
        "5-way 5-shot, 16 tokens": "n_way: 5, k_shot: 5, q_query: 5, context_tokens: 16",
        "32-way 4-shot, 63 tokens": "n_way: 32, k_shot: 4, q_query: 4, context_tokens: 63",
    }.items():
        corpus, tasks = random_tasks(directory, shape)
        count, elapsed, tokens = 0, 0.0, 0
        started = time.perf_counter()
        while elapsed < seconds:
            tokens += tasks.sample(0, count).n_tokens
            count += 1
            elapsed = time.perf_counter() - started
        results.append({"what": name, "tasks_per_second": count / elapsed, "tokens_per_second": tokens / elapsed})
    rows = corpus.training_rows(2048 if len(corpus.train.tokens) > 4096 else 128, seed=0)
    position, elapsed, started = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        rows.take(position, 8)
        position += 8
        elapsed = time.perf_counter() - started
    length = rows.sequence_length
    results.append({"what": f"rows of {length} tokens", "tokens_per_second": position * length / elapsed})
    return results


def random_tasks(directory: Path, smlmt: str) -> tuple[TextCorpus, SMLMT]:
    """Return a corpus of random words, and tasks over it. Word frequencies follow Zipf's law, as in real text.

    Args:
        directory: directory for the corpus, which is reused if it exists.
        smlmt: shape of the tasks, as YAML keys of the `smlmt` section of the configuration.
    """
    path = directory / "corpus.jsonl"
    if not path.exists():
        _write_corpus(path)
    config = parse_config(
        f"data: {{source: files, paths: [{path}], cache_dir: {directory}/cache}}\n"
        f"smlmt: {{{smlmt}, min_word_freq: 20, max_word_freq: 3000}}"
    )
    corpus = open_text_corpus(config.data)
    classes = TokenClasses.of(corpus.tokenizer)
    lexicon = ClassWords.build(corpus.train, corpus.validation, classes)
    index = WordIndex(corpus.train, lexicon, classes, config.smlmt)
    return corpus, SMLMT(index, lexicon, corpus.tokenizer, config.smlmt, "train", split_seed=0, seed=0)


def _write_corpus(path: Path) -> None:
    rng = np.random.default_rng(0)
    words = np.array([random_word(rank) for rank in range(_VOCABULARY)])
    weights = 1 / np.arange(1, _VOCABULARY + 1)
    partial = path.with_suffix(f".{os.getpid()}")
    with partial.open("w") as file:
        for _ in range(_DOCUMENTS):
            text = " ".join(rng.choice(words, size=_WORDS_PER_DOCUMENT, p=weights / weights.sum()))
            file.write(json.dumps({"text": text}) + "\n")
    partial.replace(path)


def random_word(rank: int) -> str:
    """Return a pronounceable word for a frequency rank. Frequent words (low ranks) are shorter."""
    syllables = ""
    number = rank + 1
    while number:
        number, remainder = divmod(number, 70)
        syllables += "bcdfghjklmnpqr"[remainder // 5] + "aeiou"[remainder % 5]
    return syllables
