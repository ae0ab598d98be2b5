"""Samples the contexts of the words of a task."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from pico_ds.tasks.index.class_words import HASH_MULTIPLIER
from pico_ds.tasks.index.word_index_protocols import Index
from pico_ds.tasks.task_shape import TaskShape

Integers = npt.NDArray[np.int64]
#: where the query contexts of a class come from: any document, the documents of its support contexts, or documents
#: that contain no support context of the task
Documents = Literal["any", "same", "different"]

#: occurrences that are tried for every context that is needed
_OVERSAMPLING: dict[Documents, int] = {"any": 4, "same": 48, "different": 48}
#: random assignments of documents to the support and query set that are tried for the words of a task
_MAX_ASSIGNMENTS = 16


class ContextSampler:
    """Samples contexts that contain only one word of the task, do not overlap, and differ after masking."""

    def __init__(self, index: Index, documents: Documents = "any") -> None:
        self._index, self._documents = index, documents

    def choose(self, words: Integers, shape: TaskShape, rng: np.random.Generator) -> Integers | None:
        """Return occurrences `[n_way, k_shot + q_query]`, support first; None if this sample has too few contexts."""
        free = self._free_contexts(words, shape, rng)
        for _ in range(1 if self._documents == "any" else _MAX_ASSIGNMENTS):
            chosen = self._split(free, shape, rng)
            if all(len(occurrences) == shape.per_class for occurrences in chosen):
                return np.array(chosen, dtype=np.int64)
        return None

    def has_enough_contexts(self, words: Integers, shape: TaskShape, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Return whether each word, as the only word of a task, has enough contexts."""
        return np.array([self.choose(np.array([word]), shape, rng) is not None for word in words], dtype=np.bool_)

    def _split(self, free: list[list[int]], shape: TaskShape, rng: np.random.Generator) -> list[list[int]]:
        """Return the support and query contexts of each word. A word with too few free contexts gets a shorter list."""
        if self._documents == "any":
            return [occurrences[: shape.per_class] for occurrences in free]
        if self._documents == "same":
            return [self._same_documents(rng.permutation(occurrences).tolist(), shape) for occurrences in free]
        # a document is assigned once for all classes, so that no document is in both sets of the task
        is_support_document = rng.random(len(self._index.document_ends)) < 0.5
        return [self._different_documents(occurrences, shape, is_support_document) for occurrences in free]

    def _different_documents(
        self, occurrences: list[int], shape: TaskShape, is_support_document: npt.NDArray[np.bool_]
    ) -> list[int]:
        flags = is_support_document[self._document_of(occurrences)]
        support = [occurrence for occurrence, is_support in zip(occurrences, flags, strict=True) if is_support]
        query = [occurrence for occurrence, is_support in zip(occurrences, flags, strict=True) if not is_support]
        return [*support[: shape.k_shot], *query[: shape.q_query]] if len(support) >= shape.k_shot else []

    def _same_documents(self, occurrences: list[int], shape: TaskShape) -> list[int]:
        by_document: dict[int, list[int]] = {}
        for occurrence, document in zip(occurrences, self._document_of(occurrences).tolist(), strict=True):
            by_document.setdefault(document, []).append(occurrence)
        groups = [group for group in by_document.values() if len(group) > 1]
        # The first occurrence in a document goes to the support set and the next ones to the query set, so that every
        # query context shares a document with a support context.
        support: list[int] = []
        query: list[int] = []
        for group in groups:
            if len(support) < shape.k_shot:
                support.append(group[0])
                query += group[1 : 1 + -(-shape.q_query // shape.k_shot)]
        spare = [
            occurrence
            for group in groups
            for occurrence in group
            if occurrence not in support and occurrence not in query
        ]
        used = set(self._document_of(support).tolist()) if support else set()
        while len(support) < shape.k_shot and spare:
            support.append(spare.pop())
        for occurrence in spare:
            if len(query) < shape.q_query and int(self._document_of([occurrence])[0]) in used:
                query.append(occurrence)
        if len(support) < shape.k_shot or len(query) < shape.q_query:
            return []
        return [*support, *query[: shape.q_query]]

    def _document_of(self, occurrences: list[int]) -> Integers:
        positions = self._index.positions[np.array(occurrences, dtype=np.int64)]
        return np.searchsorted(self._index.document_ends, positions, side="right")

    def _free_contexts(self, words: Integers, shape: TaskShape, rng: np.random.Generator) -> list[list[int]]:
        """Return occurrences of each word, in random order. Contexts are disjoint, distinct and without other words."""
        enough = shape.per_class if self._documents == "any" else _OVERSAMPLING[self._documents] * shape.per_class
        free: list[list[int]] = [[] for _ in words]
        # bounds of the chosen contexts; these are disjoint, so both lists are sorted
        taken_starts: list[int] = []
        taken_ends: list[int] = []
        seen: set[int] = set()
        for occurrence, label, start, end, digest in self._candidates(words, shape, rng):
            if len(free[label]) == enough or digest in seen:
                continue
            place = bisect_right(taken_starts, start)
            if place and taken_ends[place - 1] > start:
                continue
            if place < len(taken_starts) and taken_starts[place] < end:
                continue
            taken_starts.insert(place, start)
            taken_ends.insert(place, end)
            seen.add(digest)
            free[label].append(occurrence)
        return free

    def _candidates(
        self, words: Integers, shape: TaskShape, rng: np.random.Generator
    ) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (occurrence, label, start, end, digest after masking) of contexts without other words of the task."""
        index = self._index
        samples = [self._sample(int(word), shape.per_class, rng) for word in words]
        occurrences = np.concatenate(samples)
        owner = np.repeat(np.arange(len(words)), [len(sample) for sample in samples])
        starts, ends = index.contexts(occurrences)
        places = starts[:, None] + np.arange((ends - starts).max())
        inside = places < ends[:, None]
        places = np.minimum(places, len(index.tokens) - 1)
        context_words = np.where(inside, index.words_at(places), -1)
        has_other = (np.isin(context_words, words) & (context_words != words[owner][:, None])).any(axis=1)
        has_other |= (np.isin(index.unmasked_words_at(places), words) & inside).any(axis=1)
        usable = np.flatnonzero(~has_other)
        if self._documents != "any":
            # More contexts of a word are chosen than a task needs. Alternating between the words prevents the contexts
            # of a frequent word from blocking those of a rare one.
            turn = np.concatenate([np.arange(len(sample)) for sample in samples])
            usable = usable[np.argsort(turn[usable], kind="stable")]
        is_own = context_words == words[owner][:, None]
        digests = _digests(
            np.where(is_own, -1, index.tokens[places].astype(np.int64)),
            kept=inside & (~is_own | index.begins_word(places)),
        )
        parts = (part[usable].tolist() for part in (occurrences, owner, starts, ends, digests))
        return zip(*parts, strict=True)

    def _sample(self, word: int, per_class: int, rng: np.random.Generator) -> Integers:
        found = self._index.occurrences(word)
        count = found.stop - found.start
        n_samples = min(count, _OVERSAMPLING[self._documents] * per_class)
        return found.start + rng.choice(count, size=n_samples, replace=False)


def _digests(tokens: Integers, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Return a polynomial hash of the kept tokens of each row. Equal rows have equal hashes."""
    found = np.zeros(len(tokens), dtype=np.uint64)
    for column, is_kept in zip(tokens.T, kept.T, strict=True):
        found = np.where(is_kept, found * HASH_MULTIPLIER + (column + 2).astype(np.uint64), found)
    return found
