"""The update of the inner loop: plain SGD on fp32 weights, and the leaves that the network computes with.

Three functions, because the bytes that each moves are most of what adaptation costs beside its passes. With weights and
gradients in bf16 they are 10, 12 and 8 bytes a parameter; every step as if it stood alone would take 12.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = list[Tensor]


class Update(NamedTuple):
    """The steps of SGD by their place; possibly compiled.

    Attributes:
        first: (weights, gradients, negative rates) to new fp32 weights and leaves; the weights are not written to.
        next: the same for weights that `first` made, which it overwrites; to leaves.
        last: for either kind of weights, to leaves alone.
    """

    first: Callable[[Tensors, Tensors, list[float]], tuple[Tensors, Tensors]]
    next: Callable[[Tensors, Tensors, list[float]], Tensors]
    last: Callable[[Tensors, Tensors, list[float]], Tensors]


def first_step(weights: Tensors, gradients: Tensors, negative_rates: list[float]) -> tuple[Tensors, Tensors]:
    """New weights, at least in fp32, and leaves in the types of the gradients.

    The gradients are not to be used again: in fp32 their own storage becomes the new weights, so that there is no third
    copy of the model.
    """
    fast = [gradient.to(_wide(gradient)) for gradient in gradients]
    torch._foreach_mul_(fast, negative_rates)
    torch._foreach_add_(fast, weights)
    return fast, _leaves(fast, gradients)


def next_step(fast: Tensors, gradients: Tensors, negative_rates: list[float]) -> Tensors:
    """Change weights that `first_step` made, in place; leaves in the types of the gradients, which are overwritten."""
    steps = [gradient.to(weight.dtype) for gradient, weight in zip(gradients, fast, strict=True)]
    torch._foreach_mul_(steps, negative_rates)
    torch._foreach_add_(fast, steps)
    return _leaves(fast, gradients)


def last_step(weights: Tensors, gradients: Tensors, negative_rates: list[float]) -> Tensors:
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
