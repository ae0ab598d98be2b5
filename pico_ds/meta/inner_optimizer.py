"""The update of the inner loop: SGD on fp32 weights, and the leaves that the network computes with.

Three functions, because the bytes that each moves are most of what adaptation costs beside its passes. With weights and
gradients in bf16 they are 10, 12 and 8 bytes a parameter; every step as if it stood alone would take 12.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Tensors = list[Tensor]
#: of each tensor; numbers of the host, or 0-dimensional tensors where they are learned
Rates = list[Any]


class Update(NamedTuple):
    """The steps of SGD by their place; possibly compiled.

    Attributes:
        first: (weights, gradients, negative rates) to new fp32 weights and leaves; the weights are not written to.
        next: the same for weights that `first` made, which it overwrites; to leaves.
        last: for either kind of weights, to leaves alone.
    """

    first: Callable[[Tensors, Tensors, Rates], tuple[Tensors, Tensors]]
    next: Callable[[Tensors, Tensors, Rates], Tensors]
    last: Callable[[Tensors, Tensors, Rates], Tensors]


def first_step(weights: Tensors, gradients: Tensors, negative_rates: Rates) -> tuple[Tensors, Tensors]:
    """New weights, at least in fp32, and leaves in the types of the gradients.

    The gradients are not to be used again: in fp32 their own storage becomes the new weights, so that there is no third
    copy of the model.
    """
    fast = [gradient.to(_wide(gradient)) for gradient in gradients]
    torch._foreach_mul_(fast, negative_rates)
    torch._foreach_add_(fast, weights)
    return fast, _leaves(fast, gradients)


def next_step(fast: Tensors, gradients: Tensors, negative_rates: Rates) -> Tensors:
    """Change weights that `first_step` made, in place; leaves in the types of the gradients, which are overwritten."""
    steps = [gradient.to(weight.dtype) for gradient, weight in zip(gradients, fast, strict=True)]
    torch._foreach_mul_(steps, negative_rates)
    torch._foreach_add_(fast, steps)
    return _leaves(fast, gradients)


def last_step(weights: Tensors, gradients: Tensors, negative_rates: Rates) -> Tensors:
    """Leaves alone, in the types of the gradients; for when nobody asks for the fp32 weights. Writes to nothing."""
    return [
        (weight + rate * gradient.to(_wide(gradient))).to(gradient.dtype)
        for weight, gradient, rate in zip(weights, gradients, negative_rates, strict=True)
    ]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _leaves(fast: Tensors, like: Tensors) -> Tensors:
    return [weight.to(gradient.dtype) for weight, gradient in zip(fast, like, strict=True)]


#: as it stands
SGD = Update(first_step, next_step, last_step)


class Conditioner:
    """What is done to the inner gradients before SGD takes them: clipping, then momentum (Polyak 1964).

    Attributes:
        sums: of what SGD took over all steps, fp32, where they are kept.
    """

    def __init__(self, max_norm: float, momentum: float, by_task: bool, keep_sums: bool = False) -> None:
        """
        Args:
            max_norm: of all gradients of a task together; 0 clips nothing.
            momentum: v <- momentum v + gradient, and v is what is descended; 0 keeps nothing.
            by_task: the gradients have a first axis of tasks.
        """
        self._max_norm, self._momentum, self._by_task = max_norm, momentum, by_task
        self._keep_sums = keep_sums
        self._velocity: Tensors = []
        self.sums: Tensors = []

    def __call__(self, gradients: Tensors) -> Tensors:
        """Gradients in the types given; those given may be written to."""
        if self._max_norm:
            norm = total_norm(gradients, self._by_task)
            # as torch.nn.utils.clip_grad_norm_
            factor = (self._max_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient *= factor.view(-1, *[1] * (gradient.ndim - 1)) if self._by_task else factor
        if self._momentum:
            if not self._velocity:
                self._velocity = [gradient.to(_wide(gradient), copy=True) for gradient in gradients]
            else:
                torch._foreach_mul_(self._velocity, self._momentum)
                torch._foreach_add_(self._velocity, gradients)
            # a copy, for SGD writes to what it is given
            types = [gradient.dtype for gradient in gradients]
            gradients = [part.to(dtype, copy=True) for part, dtype in zip(self._velocity, types, strict=True)]
        if self._keep_sums:
            if not self.sums:
                self.sums = [gradient.to(_wide(gradient), copy=True) for gradient in gradients]
            else:
                torch._foreach_add_(self.sums, gradients)
        return gradients


def total_norm(tensors: Iterable[Tensor], by_task: bool = False) -> Float[Tensor, "*tasks"]:
    """The norm of all tensors together, fp32 at least, whatever their type; or of each task's, along the first axis."""
    found = list(tensors)
    dtype = torch.promote_types(found[0].dtype, torch.float32)
    if by_task:
        return torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=dtype) for part in found]).norm(
            dim=0
        )
    return torch.stack(torch._foreach_norm(found, 2, dtype=dtype)).norm()
