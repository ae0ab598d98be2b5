"""Prints tasks as text, and computes statistics of the tasks of a corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pico_ds.config import RunConfig
from pico_ds.data.corpus import Corpus
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.index.class_words import WORD_SPLITS, WordSplit
from pico_ds.tasks.index.token_word_boundaries import TokenClasses
from pico_ds.tasks.index.tokenizer_word_check import WordCounts, check_words
from pico_ds.tasks.task_builder import TaskBuilder
from pico_ds.tasks.task_source import TaskSource

#: training tasks that are sampled for the statistics of contexts
_SAMPLED_TASKS = 200


def describe(episode: Episode, tokenizer: TextTokenizer) -> Iterator[str]:
    """Yield a line for each context: its set, label, word and text as the model sees it, without padding."""
    for name, contexts in (("support", episode.support), ("query", episode.query)):
        for text, label in zip(texts(contexts, tokenizer), contexts.labels.tolist(), strict=True):
            yield f"{name:<8}{label}  {episode.words[label]:<14}{text}"


def plain_texts(contexts: Contexts, tokenizer: TextTokenizer) -> list[str]:
    """Return the text of each context without special tokens."""
    special = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_of_text_id}
    return [tokenizer.decode([token for token in ids if token not in special]) for ids in contexts.input_ids.tolist()]


def visible_texts(contexts: Contexts, tokenizer: TextTokenizer) -> Iterator[list[str]]:
    """Yield the texts between the special tokens of each context."""
    special = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_of_text_id}
    for ids in contexts.input_ids.tolist():
        parts = groupby(ids, key=special.__contains__)
        yield [tokenizer.decode(part) for is_special, part in parts if not is_special]


def texts(contexts: Contexts, tokenizer: TextTokenizer) -> list[str]:
    """Return the text of each context on one line, without padding."""
    rows = zip(contexts.input_ids, contexts.lengths.tolist(), strict=True)
    decoded = [tokenizer.decode(ids[:length].tolist()) for ids, length in rows]
    # the space before a word is part of the word, so it was masked too
    mask = tokenizer.decode([tokenizer.mask_id])
    return [" ".join(text.replace(mask, f" {mask}").split()) for text in decoded]


@dataclass(frozen=True)
class SplitFigures:
    """Statistics of the class words of a split.

    Attributes:
        words: number of class words.
        occurrences: minimum, median and maximum number of occurrences of a word in the documents of the split.
    """

    split: WordSplit
    words: int
    occurrences: tuple[int, int, int]


@dataclass(frozen=True)
class TaskFigures:
    """Statistics of the tasks of a corpus.

    Attributes:
        words: number of words in the vocabulary, including those that are not class words.
        sample: words of parts of the held-out text, counted from token ids and from the text.
        splits: statistics of the class words of each split.
        length_counts: number of sampled contexts by length without padding [tokens].
        padded_share: share of padding in the tokens of sampled training tasks.
    """

    words: int
    sample: WordCounts
    splits: list[SplitFigures]
    length_counts: dict[int, int]
    padded_share: float


def task_figures(config: RunConfig, corpus: Corpus) -> TaskFigures:
    """Count the words and contexts of a corpus.

    Raises:
        TaskError: the corpus cannot supply the tasks.
    """
    builder = TaskBuilder(config, corpus)
    splits = []
    for split in WORD_SPLITS:
        text = builder.texts.training(0) if split == "train" else builder.texts.held_out
        words = text.vocabulary.class_words(split, config.smlmt, config.data.split_seed)
        counts = [text.index.occurrences(int(word)) for word in words]
        sizes = np.array([found.stop - found.start for found in counts] or [0])
        splits.append(SplitFigures(split, len(words), (int(sizes.min()), int(np.median(sizes)), int(sizes.max()))))
    lengths = _sampled_lengths(builder.training())
    positions = len(lengths) * (config.smlmt.context_tokens + 1)
    found, counted = np.unique(lengths, return_counts=True)
    held_out = builder.texts.held_out
    return TaskFigures(
        len(held_out.vocabulary.words),
        check_words(corpus.tokenizer, TokenClasses.of(corpus.tokenizer), held_out.index.tokens),
        splits,
        dict(zip(found.tolist(), counted.tolist(), strict=True)),
        padded_share=1 - float(lengths.sum()) / positions,
    )


def _sampled_lengths(tasks: TaskSource) -> np.ndarray:
    episodes = [tasks.sample(step=0, index=index) for index in range(_SAMPLED_TASKS)]
    return np.concatenate([part.lengths.numpy() for episode in episodes for part in (episode.support, episode.query)])
