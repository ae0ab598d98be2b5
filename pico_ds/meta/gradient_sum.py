"""The sum of gradients over the tasks or micro-batches of a rank."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pico_ds.meta.functional_model import Parameters


class GradientSum:
    """A sum by parameter name; nothing is written for a gradient that stays alone.

    One contribution stays as it came, in the type that was computed with; from the second one on the sum is fp32. A
    step of one micro-batch passes over the weights 20 bytes a parameter less than with an fp32 accumulator.
    """

    def __init__(self, theta: Parameters) -> None:
        """
        Args:
            theta: parameters whose shapes and types the result has.
        """
        self._theta = theta
        self._sums: dict[str, Tensor] = {}

    def add(self, names: Iterable[str], gradients: Iterable[Tensor]) -> None:
        """Take in a contribution. The tensors are not to be used again: they may become the sum."""
        sums, added = [], []
        for name, gradient in zip(names, gradients, strict=True):
            if (held := self._sums.get(name)) is None:
                self._sums[name] = gradient
                continue
            self._sums[name] = held.float()
            sums.append(self._sums[name])
            added.append(gradient)
        if sums:
            torch._foreach_add_(sums, added)

    def result(self) -> dict[str, Tensor]:
        """The sum in the types of the parameters, zeros where nothing was added; leaves nothing behind."""
        found = {}
        for name, weight in self._theta.items():
            held = self._sums.pop(name, None)
            found[name] = torch.zeros_like(weight) if held is None else held.to(weight.dtype)
        return found
