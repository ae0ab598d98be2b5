"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) of modules whose parameters are given at every call."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

#: what a backward pass computes again: nothing; every block; the feed-forward layers alone
Recompute = Literal["none", "block", "selective"]


def recomputed(module: nn.Module, x: Tensor, *others: Any) -> Tensor:
    """`module(x, *others)`, of which the backward pass keeps `x` alone and computes the rest again.

    Under `torch.func.functional_call` the parameters are gone by then: they are remembered here.
    """
    if not torch.is_grad_enabled():
        return module(x, *others)
    if torch.compiler.is_compiling():
        # parameters are inputs of the graph, like all else
        return checkpoint(module, x, *others, use_reentrant=False, preserve_rng_state=False)
    weights: dict[str, Tensor] = {name: weight for name, weight in module.named_parameters()}

    def run(x: Tensor) -> Tensor:
        return functional_call(module, weights, (x, *others))

    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
