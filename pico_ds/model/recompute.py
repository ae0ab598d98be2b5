"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) that works with `torch.func.functional_call`."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

#: what the backward pass recomputes: nothing, every block, or only the feed-forward layers
Recompute = Literal["none", "block", "selective"]


def recomputed(module: nn.Module, x: Tensor, *others: Any) -> Tensor:
    """Compute `module(x, *others)`, keeping only `x` for the backward pass, which recomputes the rest.

    `torch.func.functional_call` restores the module's parameters before the backward pass, so they are captured here.
    """
    if not torch.is_grad_enabled():
        return module(x, *others)
    if torch.compiler.is_compiling():
        # the compiler makes the parameters inputs of the graph, so they need not be captured
        return checkpoint(module, x, *others, use_reentrant=False, preserve_rng_state=False)
    weights: dict[str, Tensor] = {name: weight for name, weight in module.named_parameters()}

    def run(x: Tensor) -> Tensor:
        return functional_call(module, weights, (x, *others))

    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
