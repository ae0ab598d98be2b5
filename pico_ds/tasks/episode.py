"""A task: labelled contexts to adapt on and labelled contexts to judge the adaptation by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Contexts:
    """Labelled, right-padded contexts.

    Attributes:
        input_ids: token ids; a row's real tokens come first.
        lengths: real tokens of each row.
        readout_index: position at which the features of each row are read.
        labels: class of each row, 0 to n_way - 1.
    """

    input_ids: Int[Tensor, "contexts seq"]
    lengths: Int[Tensor, " contexts"]
    readout_index: Int[Tensor, " contexts"]
    labels: Int[Tensor, " contexts"]

    def to(self, device: torch.device) -> "Contexts":
        """A copy on `device` (the same tensors where they are there already)."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Contexts":
        """What a function makes of every tensor."""
        tensors = (self.input_ids, self.lengths, self.readout_index, self.labels)
        return Contexts(*(function(tensor) for tensor in tensors))


@dataclass(frozen=True)
class Episode:
    """One few-shot classification task.

    Attributes:
        support: n_way * k_shot contexts.
        query: n_way * q_query contexts.
        words: the masked word of each class, by label.
    """

    support: Contexts
    query: Contexts
    words: tuple[str, ...]

    @property
    def n_way(self) -> int:
        """Number of classes."""
        return len(self.words)

    @property
    def n_tokens(self) -> int:
        """Tokens of support and query, padding included."""
        return self.support.input_ids.numel() + self.query.input_ids.numel()

    def to(self, device: torch.device) -> "Episode":
        """A copy on `device`."""
        return Episode(self.support.to(device), self.query.to(device), self.words)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Episode":
        """What a function makes of every tensor."""
        return Episode(self.support.map(function), self.query.map(function), self.words)
