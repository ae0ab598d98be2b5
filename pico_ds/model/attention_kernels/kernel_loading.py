"""Loads attention kernels by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pico_ds.model.attention import Attend
from pico_ds.model.attention_kernels.flash_attention_4 import flash_attention_4_operator

Backend = Literal["cudnn", "flash_attn_3", "flash_attn_4", "flash_attn", "sdpa_flash", "sdpa_efficient", "math"]
#: fastest first, by forward plus backward time on an H100 (docs/performance.md); auto uses the first that works
BACKENDS: tuple[Backend, ...] = get_args(Backend)
SDPA_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    # the only fused GPU kernel that supports fp32
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
#: module to import, and how to install it
_PACKAGES = {
    "flash_attn": ("flash_attn", "pip install flash-attn --no-build-isolation (needs nvcc)"),
    "flash_attn_3": ("flash_attn_interface", "build `hopper` of github.com/Dao-AILab/flash-attention (needs nvcc)"),
    "flash_attn_4": ("flash_attn.cute", "pip install --pre flash-attn-4"),
}


class UnavailableError(Exception):
    """The kernel is not installed, or does not work on this machine."""


def load_backend(name: Backend, device: torch.device, repeat_keys: bool = False) -> Attend:
    """Load a kernel by name, without checking its results.

    Args:
        repeat_keys: give every query head a copy of its keys and values; some torch kernels need this.

    Raises:
        UnavailableError: the kernel is not installed or does not support this device.
    """
    if name in SDPA_BACKENDS:
        if name == "cudnn" and device.type != "cuda":
            raise UnavailableError(f"needs an NVIDIA GPU, but the device is {device.type}")
        return _sdpa(SDPA_BACKENDS[name], repeat_keys)
    if device.type != "cuda":
        raise UnavailableError(f"needs an NVIDIA GPU, but the device is {device.type}")
    module, how = _PACKAGES[name]
    try:
        package: Any = importlib.import_module(module)
        function = package.flash_attn_func
        interface: Any = importlib.import_module("flash_attn.cute.interface") if name == "flash_attn_4" else None
    except Exception as error:  # a package built for another GPU, CUDA or torch can raise anything when imported
        raise UnavailableError(f"{module} cannot be imported ({type(error).__name__}: {error}); {how}") from error
    if interface is not None:
        return _direct(flash_attention_4_operator(interface))
    return _direct(lambda queries, keys, values: function(queries, keys, values, causal=True))


def _sdpa(backend: SDPBackend, repeat_keys: bool = False) -> Attend:
    def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
        groups = queries.shape[-3] // keys.shape[-3]
        if repeat_keys:
            keys, values = (x.repeat_interleave(groups, dim=-3) for x in (keys, values))
        grouped = groups > 1 and not repeat_keys
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)

    return attend


#: plain torch operations, which all of torch.func supports
math_attention = _sdpa(SDPBackend.MATH)


def _direct(function: Callable[[Tensor, Tensor, Tensor], Any]) -> Attend:
    """Wrap a package function that expects `[batch, seq, heads, head_dim]` and supports grouped-query attention."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
        mixed = function(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        # some versions also return the log-sum-exp
        return (mixed[0] if isinstance(mixed, tuple) else mixed).transpose(1, 2)

    return attend
