"""The update of the inner loop."""

from collections.abc import Callable

import torch
from torch import Tensor

#: weights, gradients, negative rates and types of the leaves, to new weights and new leaves
Update = Callable[[list[Tensor], list[Tensor], list[float], list[torch.dtype]], tuple[list[Tensor], list[Tensor]]]


def sgd(
    weights: list[Tensor], gradients: list[Tensor], negative_rates: list[float], dtypes: list[torch.dtype]
) -> tuple[list[Tensor], list[Tensor]]:
    """New weights, at least in fp32, and the same in the types that are computed with.

    The gradients are not to be used again: in fp32 their own storage becomes the new weights, so that there is no third
    copy of the model.
    """
    fast = [gradient.to(torch.promote_types(gradient.dtype, torch.float32)) for gradient in gradients]
    torch._foreach_mul_(fast, negative_rates)
    torch._foreach_add_(fast, weights)
    return fast, [weight.to(dtype) for weight, dtype in zip(fast, dtypes, strict=True)]
