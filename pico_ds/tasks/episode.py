"""A task: labelled contexts to adapt on (support set), and labelled contexts to evaluate on (query set)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Contexts:
    """Labelled, right-padded contexts of one task, or of several tasks of one shape.

    Attributes:
        input_ids: token ids, padded on the right.
        lengths: number of tokens of each row, without padding.
        readout_index: position at which the features of each row are read.
        labels: class of each row, 0 to n_way - 1.
    """

    input_ids: Int[Tensor, "*tasks contexts seq"]
    lengths: Int[Tensor, "*tasks contexts"]
    readout_index: Int[Tensor, "*tasks contexts"]
    labels: Int[Tensor, "*tasks contexts"]

    def to(self, device: torch.device) -> "Contexts":
        """Return the contexts on `device`. Tensors that are already on `device` are not copied."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    @staticmethod
    def stack(parts: Sequence["Contexts"]) -> "Contexts":
        """Stack the contexts of several tasks of one shape along a new first axis."""
        names = ("input_ids", "lengths", "readout_index", "labels")
        return Contexts(*(torch.stack([getattr(part, name) for part in parts]) for name in names))

    def followed_by(self, other: "Contexts") -> "Contexts":
        """Append other contexts of the same tasks along the contexts axis."""
        names = ("input_ids", "lengths", "readout_index", "labels")
        axis = self.labels.ndim - 1
        return Contexts(*(torch.cat([getattr(self, name), getattr(other, name)], dim=axis) for name in names))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Contexts":
        """Apply a function to every tensor."""
        tensors = (self.input_ids, self.lengths, self.readout_index, self.labels)
        return Contexts(*(function(tensor) for tensor in tensors))


@dataclass(frozen=True)
class Episode:
    """One few-shot classification task, or several of one shape that are computed together.

    Attributes:
        support: n_way * k_shot contexts.
        query: n_way * q_query contexts.
        words: masked word (or name) of each class, ordered by task, then by label.
        word_tokens: tokens of each word, padded with -1.
        keys: 64-bit seed of the random numbers that are generated on the device, one for each task.
    """

    support: Contexts
    query: Contexts
    words: tuple[str, ...]
    word_tokens: Int[Tensor, "*tasks n_way word_tokens"]
    keys: tuple[int, ...]

    @property
    def n_way(self) -> int:
        """Number of classes of a task."""
        return len(self.words) // (self.n_tasks or 1)

    @property
    def n_tasks(self) -> int | None:
        """Number of tasks along the first axis; None if the episode has no task axis."""
        labels = self.support.labels
        return len(labels) if labels.ndim > 1 else None

    @staticmethod
    def stack(tasks: Sequence["Episode"]) -> "Episode":
        """Stack several tasks of one shape along a new first axis."""
        support, query = (Contexts.stack([getattr(task, part) for task in tasks]) for part in ("support", "query"))
        return Episode(
            support,
            query,
            words=tuple(word for task in tasks for word in task.words),
            word_tokens=torch.stack([task.word_tokens for task in tasks]),
            keys=tuple(key for task in tasks for key in task.keys),
        )

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the support and query set, including padding."""
        return self.support.input_ids.numel() + self.query.input_ids.numel()

    def to(self, device: torch.device) -> "Episode":
        """Return the episode on `device`. Tensors that are already on `device` are not copied."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Episode":
        """Apply a function to every tensor."""
        return replace(
            self,
            support=self.support.map(function),
            query=self.query.map(function),
            word_tokens=function(self.word_tokens),
        )
