"""Layers of the decoder. Parameter names and arithmetic match pico-train."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attend
from .recompute import Recompute, recomputed
from .rotary_embedding import rotate_pairs


class DecoderShape(Protocol):
    """Configuration fields that define the decoder's architecture."""

    d_model: int
    n_layers: int
    attention_n_heads: int
    attention_n_kv_heads: int
    activation_hidden_dim: int
    norm_eps: float
    position_emb_theta: float


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467), computed in fp32."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.eps = shape.norm_eps
        self.weight = nn.Parameter(torch.ones(shape.d_model))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d_model]` to `[..., d_model]`."""
        x32 = x.float()
        normalised = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return normalised.type_as(x) * self.weight


class Attention(nn.Module):
    """Multi-head attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, shape: DecoderShape, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = shape.d_model // shape.attention_n_heads
        kv_width = shape.attention_n_kv_heads * self.head_dim
        self.q_proj = nn.Linear(shape.d_model, shape.d_model, bias=False)
        self.k_proj = nn.Linear(shape.d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(shape.d_model, shape.d_model, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """`[batch, seq, d_model]` to `[batch, seq, d_model]`."""
        queries, keys, values = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        mixed = attend(rotate_pairs(queries, angles), rotate_pairs(keys, angles), values, self.layer)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020, arXiv 2002.05202): w_2(silu(w_0 x) * w_1 x)."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.w_0 = nn.Linear(shape.d_model, shape.activation_hidden_dim, bias=False)
        self.w_1 = nn.Linear(shape.d_model, shape.activation_hidden_dim, bias=False)
        self.w_2 = nn.Linear(shape.activation_hidden_dim, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., d_model]` to `[..., d_model]`."""
        return self.w_2(F.silu(self.w_0(x)) * self.w_1(x))


class DecoderBlock(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def __init__(self, shape: DecoderShape, layer: int) -> None:
        super().__init__()
        self.attention = Attention(shape, layer)
        self.swiglu = SwiGLU(shape)
        self.attention_norm = RMSNorm(shape)
        self.swiglu_norm = RMSNorm(shape)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], attend: Attend, recompute: Recompute = "none"
    ) -> Tensor:
        """`[batch, seq, d_model]` to `[batch, seq, d_model]`.

        Args:
            recompute: which activations the backward pass recomputes, to save memory.
        """
        if recompute == "block":
            return recomputed(self, x, angles, attend)
        x = x + self.attention(self.attention_norm(x), angles, attend)
        normed = self.swiglu_norm(x)
        return x + (recomputed(self.swiglu, normed) if recompute == "selective" else self.swiglu(normed))
