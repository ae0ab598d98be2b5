"""The update of the inner loop: SGD on fp32 weights, with a cast to the type that the network computes in.

Memory traffic is most of the cost of an update, so the first, the middle and the last step have separate functions.
With weights and gradients in bf16 they move 10, 12 and 8 bytes per parameter; one function for all steps would move 12.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Tensors = list[Tensor]
#: one rate for each tensor; numbers, or 0-dimensional tensors if the rates are learned
Rates = list[Any]


class Update(NamedTuple):
    """The first, middle and last steps of SGD, possibly compiled. All take (weights, gradients, negative rates).

    Attributes:
        first: returns new fp32 weights and leaves; does not change the weights.
        next: changes the fp32 weights that `first` returned, in place; returns leaves.
        last: returns leaves only; does not change the weights.
    """

    first: Callable[[Tensors, Tensors, Rates], tuple[Tensors, Tensors]]
    next: Callable[[Tensors, Tensors, Rates], Tensors]
    last: Callable[[Tensors, Tensors, Rates], Tensors]


def first_step(weights: Tensors, gradients: Tensors, negative_rates: Rates) -> tuple[Tensors, Tensors]:
    """Return new weights, at least in fp32, and leaves in the types of the gradients.

    The caller must not use the gradients again: in fp32 their storage becomes the new weights, which avoids a third
    copy of the model.
    """
    fast = [gradient.to(_wide(gradient)) for gradient in gradients]
    torch._foreach_mul_(fast, negative_rates)
    torch._foreach_add_(fast, weights)
    return fast, _leaves(fast, gradients)


def next_step(fast: Tensors, gradients: Tensors, negative_rates: Rates) -> Tensors:
    """Change the weights that `first_step` returned, in place. Returns leaves in the types of the gradients."""
    steps = [gradient.to(weight.dtype) for gradient, weight in zip(gradients, fast, strict=True)]
    torch._foreach_mul_(steps, negative_rates)
    torch._foreach_add_(fast, steps)
    return _leaves(fast, gradients)


def last_step(weights: Tensors, gradients: Tensors, negative_rates: Rates) -> Tensors:
    """Return leaves in the types of the gradients, if fp32 weights are not needed. Does not change its arguments."""
    return [
        (weight + rate * gradient.to(_wide(gradient))).to(gradient.dtype)
        for weight, gradient, rate in zip(weights, gradients, negative_rates, strict=True)
    ]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _leaves(fast: Tensors, like: Tensors) -> Tensors:
    return [weight.to(gradient.dtype) for weight, gradient in zip(fast, like, strict=True)]


#: not compiled
SGD = Update(first_step, next_step, last_step)


class Conditioner:
    """Processes the inner gradients before the SGD step: clipping, then momentum (Polyak 1964).

    Attributes:
        sums: sums of the processed gradients over all steps, fp32; empty unless `keep_sums` is set.
    """

    def __init__(self, max_norm: float, momentum: float, by_task: bool, keep_sums: bool = False) -> None:
        """
        Args:
            max_norm: largest norm of all gradients of a task together; 0 for no clipping.
            momentum: v <- momentum * v + gradient, and v replaces the gradient; 0 for no momentum.
            by_task: the first axis of the gradients is the tasks.
        """
        self._max_norm, self._momentum, self._by_task = max_norm, momentum, by_task
        self._keep_sums = keep_sums
        self._velocity: Tensors = []
        self.sums: Tensors = []

    def __call__(self, gradients: Tensors) -> Tensors:
        """Return the processed gradients without changing their types. The arguments may be overwritten."""
        if self._max_norm:
            norm = total_norm(gradients, self._by_task)
            # the same formula as torch.nn.utils.clip_grad_norm_
            factor = (self._max_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient *= factor.view(-1, *[1] * (gradient.ndim - 1)) if self._by_task else factor
        if self._momentum:
            if not self._velocity:
                self._velocity = [gradient.to(_wide(gradient), copy=True) for gradient in gradients]
            else:
                torch._foreach_mul_(self._velocity, self._momentum)
                torch._foreach_add_(self._velocity, gradients)
            # a copy, because SGD overwrites its gradients
            types = [gradient.dtype for gradient in gradients]
            gradients = [part.to(dtype, copy=True) for part, dtype in zip(self._velocity, types, strict=True)]
        if self._keep_sums:
            if not self.sums:
                self.sums = [gradient.to(_wide(gradient), copy=True) for gradient in gradients]
            else:
                torch._foreach_add_(self.sums, gradients)
        return gradients


def total_norm(tensors: Iterable[Tensor], by_task: bool = False) -> Float[Tensor, "*tasks"]:
    """Return the norm of all tensors together, at least in fp32; with `by_task`, one per index of the first axis."""
    found = list(tensors)
    dtype = torch.promote_types(found[0].dtype, torch.float32)
    if by_task:
        return torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=dtype) for part in found]).norm(
            dim=0
        )
    return torch.stack(torch._foreach_norm(found, 2, dtype=dtype)).norm()
