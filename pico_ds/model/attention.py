"""Causal attention, and the interface of attention kernels."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor


@runtime_checkable
class Attend(Protocol):
    """Interface of an attention kernel. Queries and keys are already rotated.

    Shapes: queries `[batch, heads, seq, head_dim]`, keys and values `[batch, kv_heads, seq, head_dim]`; the result has
    the shape of the queries. `layer` is the index of the block, for implementations that keep a cache per block.
    """

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        """Compute attention."""
        ...


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
    """Compute causal self-attention without a mask tensor, so that the flash kernels apply.

    Sequences are right-padded, so the causal mask already hides the padding from every real position.
    """
    grouped = queries.shape[-3] != keys.shape[-3]
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
