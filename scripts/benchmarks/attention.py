"""Times the forward and backward pass of every available attention kernel."""

import time
from statistics import median
from typing import Any

import torch

from pico_ds.model.attention import Attend
from pico_ds.model.attention_kernels.kernel_choice import AttentionShape, check_kernel
from pico_ds.model.attention_kernels.kernel_loading import BACKENDS, UnavailableError, load_backend


def measure_attention(
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    length: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Return one row per kernel, with its time and FLOP/s, or the reason why the kernel is unavailable."""
    shapes = [(batch, heads, length, head_dim) for heads in (n_heads, n_kv_heads, n_kv_heads, n_heads)]
    *inputs, upstream = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    # two matrix products in the forward pass and five in the backward pass, each halved by the causal mask
    flops = 7 * batch * n_heads * length * length * head_dim
    rows: list[dict[str, Any]] = []
    for name in BACKENDS:
        row: dict[str, Any] = {"kernel": name, "batch": batch, "length": length, "head_dim": head_dim}
        try:
            attend = load_backend(name, device)
            check_kernel(attend, AttentionShape(device, dtype, n_heads, n_kv_heads, head_dim), min(length, 128))
            seconds = [_seconds(attend, leaves, upstream) for _ in range(repeats + 1)]
        except (UnavailableError, RuntimeError) as problem:
            rows.append({**row, "why_not": str(problem)})
            continue
        median_seconds = median(seconds[1:])
        rows.append({**row, "milliseconds": 1e3 * median_seconds, "tflops_per_second": flops / median_seconds / 1e12})
    return rows


def _seconds(attend: Attend, leaves: list[torch.Tensor], upstream: torch.Tensor) -> float:
    """Return the seconds of one forward and backward pass.

    On a GPU, several passes are queued at once, to hide the overhead of the host.
    """
    device = upstream.device
    passes = 10 if device.type == "cuda" else 1
    _wait(device)
    started = time.perf_counter()
    for _ in range(passes):
        torch.autograd.grad(attend(leaves[0], leaves[1], leaves[2], 0), leaves, upstream)
    _wait(device)
    return (time.perf_counter() - started) / passes


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
