"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864). The arithmetic matches pico-train."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angles in fp32.

    They are computed at each call, so a checkpoint has no RoPE buffer.

    Args:
        position_ids: `[batch or 1, seq]` integers.

    Returns:
        two tensors `[batch or 1, 1, seq, head_dim / 2]`.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (theta**exponents)
    angles = (position_ids.to(torch.float32)[..., None] * frequencies)[:, None]
    return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate ADJACENT pairs of features (the complex form of RoPE, Su et al. 2021, arXiv 2104.09864).

    Args:
        x: `[batch, heads, seq, head_dim]`.
    """
    cos, sin = angles
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).type_as(x)
