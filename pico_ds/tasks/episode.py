"""A task: labelled contexts to adapt on and labelled contexts to judge the adaptation by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Contexts:
    """Labelled, right-padded contexts, of one task or of several alike.

    Attributes:
        input_ids: token ids; a row's real tokens come first.
        lengths: real tokens of each row.
        readout_index: position at which the features of each row are read.
        labels: class of each row, 0 to n_way - 1.
    """

    input_ids: Int[Tensor, "*tasks contexts seq"]
    lengths: Int[Tensor, "*tasks contexts"]
    readout_index: Int[Tensor, "*tasks contexts"]
    labels: Int[Tensor, "*tasks contexts"]

    def to(self, device: torch.device) -> "Contexts":
        """A copy on `device` (the same tensors where they are there already)."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    @staticmethod
    def stack(parts: Sequence["Contexts"]) -> "Contexts":
        """Those of several tasks of one shape, along a first axis."""
        names = ("input_ids", "lengths", "readout_index", "labels")
        return Contexts(*(torch.stack([getattr(part, name) for part in parts]) for name in names))

    def followed_by(self, other: "Contexts") -> "Contexts":
        """These contexts and then those of another set of the same tasks."""
        names = ("input_ids", "lengths", "readout_index", "labels")
        axis = self.labels.ndim - 1
        return Contexts(*(torch.cat([getattr(self, name), getattr(other, name)], dim=axis) for name in names))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Contexts":
        """What a function makes of every tensor."""
        tensors = (self.input_ids, self.lengths, self.readout_index, self.labels)
        return Contexts(*(function(tensor) for tensor in tensors))


@dataclass(frozen=True)
class Episode:
    """One few-shot classification task, or several of one shape that are computed together.

    Attributes:
        support: n_way * k_shot contexts.
        query: n_way * q_query contexts.
        words: the masked word (or the name) of each class, by label, task after task.
        word_tokens: the tokens of each of them, -1 behind the last.
        keys: of what is drawn for each task on the device, 64 bits each.
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
        """Number of tasks along the first axis; None where there is no such axis."""
        labels = self.support.labels
        return len(labels) if labels.ndim > 1 else None

    @staticmethod
    def stack(tasks: Sequence["Episode"]) -> "Episode":
        """Several tasks of one shape as one, along a first axis."""
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
        """Tokens of support and query, padding included."""
        return self.support.input_ids.numel() + self.query.input_ids.numel()

    def to(self, device: torch.device) -> "Episode":
        """A copy on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Episode":
        """What a function makes of every tensor."""
        return replace(
            self,
            support=self.support.map(function),
            query=self.query.map(function),
            word_tokens=function(self.word_tokens),
        )
