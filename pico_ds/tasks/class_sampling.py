"""Samples the words that are the classes of a task."""

import numpy as np
import numpy.typing as npt

from pico_ds.config import SmlmtConfig
from pico_ds.errors import TaskError
from pico_ds.tasks.index.word_index_protocols import Index

Integers = npt.NDArray[np.int64]

#: tokens on each side of a word that count as its neighbors
_WINDOW = 4
#: number of most frequent tokens that are counted as neighbors
_N_FEATURES = 1000
#: words that are compared with all others at once, which bounds the memory
_CHUNK_WORDS = 2048


class ClassSampler:
    """Samples the classes of a task, in random order.

    `smlmt.class_sampling` is one of:
        uniform: all words are equally likely.
        frequency: the probability of a word is proportional to its number of occurrences.
        cluster: the first word is sampled uniformly, and the others from its `smlmt.cluster_size` nearest words.
            Words with similar neighbors are hard to tell apart.
    """

    def __init__(self, words: Integers, config: SmlmtConfig, index: Index) -> None:
        """
        Args:
            words: ids of the words that may be classes.

        Raises:
            TaskError: there are no more words than `smlmt.cluster_size`.
        """
        self._words, self._kind = words, config.class_sampling
        if self._kind == "frequency":
            counts = np.array([_count(index, int(word)) for word in words], dtype=np.float64)
            self._probabilities = counts / counts.sum()
        elif self._kind == "cluster":
            if len(words) <= config.cluster_size:
                raise TaskError(
                    f"smlmt.cluster_size: got {config.cluster_size}, but the text has only {len(words)} class words; "
                    "lower cluster_size, or use more text"
                )
            self._nearest = nearest_words(index, words, config.cluster_size)

    def draw(self, rng: np.random.Generator, n_way: int, progress: float) -> Integers:
        """Return the ids of `n_way` distinct words.

        Args:
            progress: probability that words are sampled by `smlmt.class_sampling` instead of uniformly.
        """
        kind = self._kind if progress == 1.0 or rng.random() < progress else "uniform"
        if kind == "frequency":
            return rng.choice(self._words, size=n_way, replace=False, p=self._probabilities)
        if kind == "cluster":
            first = int(rng.integers(len(self._words)))
            others = rng.choice(self._nearest[first], size=n_way - 1, replace=False)
            return rng.permutation(self._words[np.append(others, first)])
        return rng.choice(self._words, size=n_way, replace=False)


def nearest_words(index: Index, words: Integers, count: int) -> Integers:
    """Return the `count` nearest other words of each word, nearest first, as `[n_words, count]` indices into `words`.

    A word is represented by its positive pointwise mutual information with the most frequent tokens around it
    (Bullinaria and Levy 2007). Similarity is the cosine.
    """
    vectors = _cooccurrence_vectors(index, words)
    found = np.empty((len(words), count), dtype=np.int64)
    for first in range(0, len(words), _CHUNK_WORDS):
        similarity = vectors[first : first + _CHUNK_WORDS] @ vectors.T
        rows = np.arange(len(similarity))
        similarity[rows, first + rows] = -np.inf
        # a stable sort breaks ties in the same way on every platform
        found[first : first + _CHUNK_WORDS] = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return found


def _cooccurrence_vectors(index: Index, words: Integers) -> npt.NDArray[np.float32]:
    """Return the PPMI vector of each word, with unit length, `[n_words, features]`."""
    tokens = index.tokens
    frequency = np.bincount(tokens)
    features = np.argsort(-frequency, kind="stable")[:_N_FEATURES]
    feature_of_token = np.full(len(frequency), -1, dtype=np.int64)
    feature_of_token[features] = np.arange(len(features))
    counts = np.zeros((len(words), len(features)), dtype=np.float32)
    for row, word in enumerate(words.tolist()):
        places = index.positions[index.occurrences(word)]
        around = places[:, None] + np.array([*range(-_WINDOW, 0), *range(1, _WINDOW + 1)])
        inside = (around >= 0) & (around < len(tokens))
        neighbors = feature_of_token[tokens[np.where(inside, around, 0)]]
        counts[row] = np.bincount(neighbors[inside & (neighbors >= 0)], minlength=len(features))
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / max(counts.sum(), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.nan_to_num(np.log(counts / expected), nan=0.0, posinf=0.0, neginf=0.0)
    vectors = np.maximum(information, 0)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _count(index: Index, word: int) -> int:
    found = index.occurrences(word)
    return found.stop - found.start
