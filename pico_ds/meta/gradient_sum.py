"""The sum of the gradients of a rank's tasks or micro-batches."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pico_ds.meta.functional_model import Parameters


class GradientSum:
    """Sum of gradients by parameter name.

    The first contribution is kept without a copy, in its own type. From the second contribution on, the sum is fp32.
    For a step of one micro-batch this saves 20 bytes of memory traffic per parameter, compared with an fp32
    accumulator.
    """

    def __init__(self, theta: Parameters) -> None:
        """
        Args:
            theta: parameters; the result has their shapes and types.
        """
        self._theta = theta
        self._sums: dict[str, Tensor] = {}

    def add(self, names: Iterable[str], gradients: Iterable[Tensor]) -> None:
        """Add gradients. The caller must not use the tensors again, because they may become the sum."""
        sums, added = [], []
        for name, gradient in zip(names, gradients, strict=True):
            if (current := self._sums.get(name)) is None:
                self._sums[name] = gradient
                continue
            self._sums[name] = current.float()
            sums.append(self._sums[name])
            added.append(gradient)
        if sums:
            torch._foreach_add_(sums, added)

    def result(self) -> dict[str, Tensor]:
        """Return the sum in the types of the parameters, with zeros if there is no gradient, and clear the sum."""
        gradients = {}
        for name, weight in self._theta.items():
            current = self._sums.pop(name, None)
            gradients[name] = torch.zeros_like(weight) if current is None else current.to(weight.dtype)
        return gradients
