"""Which words become the classes of a task."""

import numpy as np
import numpy.typing as npt

from pico_ds.config import SmlmtConfig
from pico_ds.errors import TaskError
from pico_ds.tasks.index.text_index import Index

Integers = npt.NDArray[np.int64]

#: tokens to either side of a word that count as its company
_REACH = 4
#: most frequent tokens that are counted
_FEATURES = 1000
#: words whose neighbours are sought at once, which bounds the memory
_ROWS = 2048


class ClassChoice:
    """Draws the classes of a task, in random order.

    uniform: all words alike. frequency: in proportion to their occurrences. cluster: a word, and others out of its
    `smlmt.cluster_size` nearest by the company they keep, which are hard to tell apart.
    """

    def __init__(self, words: Integers, config: SmlmtConfig, index: Index) -> None:
        """
        Args:
            words: that may be classes.

        Raises:
            TaskError: fewer words than a cluster has.
        """
        self._words, self._kind = words, config.class_sampling
        if self._kind == "frequency":
            counts = np.array([_count(index, int(word)) for word in words], dtype=np.float64)
            self._probabilities = counts / counts.sum()
        elif self._kind == "cluster":
            if len(words) <= config.cluster_size:
                raise TaskError(
                    f"smlmt.cluster_size: got {config.cluster_size}, but there are only {len(words)} class words here; "
                    "lower it, or give more text"
                )
            self._near = nearest_words(index, words, config.cluster_size)

    def draw(self, rng: np.random.Generator, n_way: int, progress: float) -> Integers:
        """`n_way` distinct words.

        Args:
            progress: share of the tasks that are drawn as asked for; the others are uniform.
        """
        kind = self._kind if progress == 1.0 or rng.random() < progress else "uniform"
        if kind == "frequency":
            return rng.choice(self._words, size=n_way, replace=False, p=self._probabilities)
        if kind == "cluster":
            first = int(rng.integers(len(self._words)))
            others = rng.choice(self._near[first], size=n_way - 1, replace=False)
            return rng.permutation(self._words[np.append(others, first)])
        return rng.choice(self._words, size=n_way, replace=False)


def nearest_words(index: Index, words: Integers, count: int) -> Integers:
    """For each word the places in `words` of the `count` others that keep the most similar company, nearest first.

    Company is the positive pointwise mutual information with the most frequent tokens around (Bullinaria and Levy
    2007), similarity its cosine.
    """
    vectors = _company(index, words)
    found = np.empty((len(words), count), dtype=np.int64)
    for first in range(0, len(words), _ROWS):
        similarity = vectors[first : first + _ROWS] @ vectors.T
        rows = np.arange(len(similarity))
        similarity[rows, first + rows] = -np.inf
        # stable, so that ties fall alike everywhere
        found[first : first + _ROWS] = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return found


def _company(index: Index, words: Integers) -> npt.NDArray[np.float32]:
    """Unit vectors `[n_words, features]`."""
    tokens = index.tokens
    frequency = np.bincount(tokens)
    features = np.argsort(-frequency, kind="stable")[:_FEATURES]
    feature_of_token = np.full(len(frequency), -1, dtype=np.int64)
    feature_of_token[features] = np.arange(len(features))
    counts = np.zeros((len(words), len(features)), dtype=np.float32)
    for row, word in enumerate(words.tolist()):
        places = index.positions[index.occurrences(word)]
        around = places[:, None] + np.array([*range(-_REACH, 0), *range(1, _REACH + 1)])
        inside = (around >= 0) & (around < len(tokens))
        there = feature_of_token[tokens[np.where(inside, around, 0)]]
        counts[row] = np.bincount(there[inside & (there >= 0)], minlength=len(features))
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / max(counts.sum(), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.nan_to_num(np.log(counts / expected), nan=0.0, posinf=0.0, neginf=0.0)
    vectors = np.maximum(information, 0)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _count(index: Index, word: int) -> int:
    found = index.occurrences(word)
    return found.stop - found.start
