"""Chooses the attention kernel. All kernels compute the same function; they differ in speed and availability."""

from __future__ import annotations

import importlib
import logging
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pico_ds.config import ConfigError
from pico_ds.model.attention import Attend

logger = logging.getLogger(__name__)

Backend = Literal["cudnn", "flash_attn_3", "flash_attn_4", "flash_attn", "sdpa_flash", "sdpa_efficient", "math"]
#: fastest first, by forward plus backward time on an H100 (docs/performance.md); auto uses the first that works
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    # the only fused GPU kernel that supports fp32
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
#: under vmap, torch does not detect that a gradient will be needed; these kernels then save nothing for backward
_NOT_UNDER_VMAP = {"cudnn", "sdpa_efficient"}
#: last cuDNN release that accesses memory out of bounds unless the length is a multiple of 128 (pytorch issue 169849)
_CUDNN_LAST_WRONG_VERSION, _CUDNN_LENGTH_MULTIPLE = 91500, 128
#: module to import, and how to install it
_PACKAGES = {
    "flash_attn": ("flash_attn", "pip install flash-attn --no-build-isolation (needs nvcc)"),
    "flash_attn_3": ("flash_attn_interface", "build `hopper` of github.com/Dao-AILab/flash-attention (needs nvcc)"),
    "flash_attn_4": ("flash_attn.cute", "pip install --pre flash-attn-4"),
}
#: largest allowed difference from fp32 arithmetic, relative to the largest value; bf16 has 8 bits of precision
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}


class UnavailableError(Exception):
    """The kernel is not installed, or does not work on this machine."""


#: log lines already written, because a run builds several networks
_logged: set[str] = set()


def choose_attention(
    requested: Backend | Literal["auto"],
    device: torch.device,
    dtype: torch.dtype,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    lengths: Sequence[int],
) -> tuple[Backend, Attend]:
    """Return the requested attention kernel, or with `auto` the fastest one that works here. Logs the choice.

    A kernel works if its output and gradients match fp32 arithmetic on random inputs of the given lengths.

    Raises:
        ConfigError: the requested kernel does not work; the message says how to install it.
    """
    problems: list[str] = []
    for name in BACKENDS if requested == "auto" else (requested,):
        for repeat_keys in (False, True) if name in _SDPA and n_kv_heads < n_heads else (False,):
            try:
                attend = load_backend(name, device, repeat_keys)
                if name == "cudnn":
                    _check_cudnn(lengths)
                for length in lengths:
                    with warnings.catch_warnings():
                        # torch warns about every reason why a kernel is unsupported; the error is enough
                        warnings.simplefilter("ignore")
                        probe(attend, device, dtype, n_heads, n_kv_heads, head_dim, length)
            except UnavailableError as problem:
                message = f"{name}: {problem}"
                # a missing kernel gives the same message with and without repeated keys
                problems += [message] if message not in problems else []
                continue
            how = "keys and values repeated for each query head" if repeat_keys else f"model.attention: {requested}"
            message = f"attention: {name} ({how}){''.join(f'; not {problem}' for problem in problems)}"
            if message not in _logged:
                _logged.add(message)
                logger.info("%s", message)
            return name, attend
    raise ConfigError(
        f"model.attention: {'; '.join(problems)}. Choose another one of auto, {', '.join(BACKENDS)}; auto finds the "
        "fastest available kernel"
    )


def choose_batched_attention(
    chosen: Backend,
    attend: Attend,
    device: torch.device,
    dtype: torch.dtype,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    length: int,
) -> tuple[Backend, Attend]:
    """Return an attention kernel that supports `torch.func.vmap`, which batches the tasks.

    The candidates are the chosen kernel, torch's flash kernel, and finally plain operations.
    """
    candidates: list[tuple[Backend, Attend]] = [(chosen, attend)] if chosen not in _NOT_UNDER_VMAP else []
    candidates += [("sdpa_flash", load_backend("sdpa_flash", device, repeat)) for repeat in (False, True)]
    problems: dict[str, str] = {}
    for name, candidate in candidates:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # a kernel without a batching rule runs task by task, with this warning
                warnings.filterwarnings("error", message=".*batching rule")
                probe(_under_vmap(candidate), device, dtype, n_heads, n_kv_heads, head_dim, length)
        except UnavailableError as problem:
            problems.setdefault(name, f"{name} {problem}")
            continue
        logger.info("attention for batched tasks: %s", name)
        return name, candidate
    logger.info("attention for batched tasks: plain operations (%s)", "; ".join(problems.values()))
    return "math", math_attention


def _under_vmap(attend: Attend) -> Attend:
    def batched(queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        def single(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attend(queries, keys, values, layer)

        return torch.func.vmap(single)(queries[:, None], keys[:, None], values[:, None])[:, 0]

    return batched


def _check_cudnn(lengths: Sequence[int]) -> None:
    version = torch.backends.cudnn.version() or 0
    if version <= _CUDNN_LAST_WRONG_VERSION and any(length % _CUDNN_LENGTH_MULTIPLE for length in lengths):
        raise UnavailableError(
            f"cuDNN {version} gives wrong results unless lengths are multiples of {_CUDNN_LENGTH_MULTIPLE} (got "
            f"{lengths}); install a newer torch or nvidia-cudnn"
        )


def load_backend(name: Backend, device: torch.device, repeat_keys: bool = False) -> Attend:
    """Load a kernel by name, without checking its results.

    Args:
        repeat_keys: give every query head a copy of its keys and values; some torch kernels need this.

    Raises:
        UnavailableError: the kernel is not installed or does not support this device.
    """
    if name in _SDPA:
        if name == "cudnn" and device.type != "cuda":
            raise UnavailableError(f"needs an NVIDIA GPU, but the device is {device.type}")
        return _sdpa(_SDPA[name], repeat_keys)
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
        return _direct(_opaque(interface))
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


def _opaque(interface: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Wrap FlashAttention-4 as a custom operator, because torch.compile cannot trace its Python code.

    Uses private functions of the package. `probe` checks their results first.
    """

    @torch.library.custom_op("pico_ds::flash_attn_4", mutates_args=())
    def forward(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        out, normaliser, *_ = interface._flash_attn_fwd(queries, keys, values, causal=True, return_lse=True)
        return out, normaliser

    @forward.register_fake
    def _(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        batch, seq, heads, _ = queries.shape
        normaliser = torch.empty((batch, heads, seq), device=queries.device, dtype=torch.float32)
        return torch.empty(queries.shape, device=queries.device, dtype=queries.dtype), normaliser

    @torch.library.custom_op("pico_ds::flash_attn_4_backward", mutates_args=())
    def backward(
        gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, out: Tensor, normaliser: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = interface._flash_attn_bwd(queries, keys, values, out, gradient, normaliser, causal=True)
        return found[0], found[1], found[2]

    @backward.register_fake
    def _(
        gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, out: Tensor, normaliser: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (queries, keys, values))  # type: ignore[return-value]

    @forward.register_vmap
    def _(info: Any, in_dims: tuple[int, ...], *inputs: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Fold the tasks into the batch axis."""
        tasks_first = (tensor.movedim(dim, 0) for tensor, dim in zip(inputs, in_dims, strict=True))
        found = forward(*(tensor.flatten(0, 1) for tensor in tasks_first))
        out, normaliser = (tensor.unflatten(0, (info.batch_size, -1)) for tensor in found)
        return (out, normaliser), (0, 0)

    def save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    def differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return backward(gradient.contiguous(), *ctx.saved_tensors)

    forward.register_autograd(differentiate, setup_context=save_for_backward)
    return lambda queries, keys, values: forward(queries, keys, values)[0]


def probe(
    attend: Attend, device: torch.device, dtype: torch.dtype, n_heads: int, n_kv_heads: int, head_dim: int, length: int
) -> None:
    """Check the output and gradients of a kernel against fp32 arithmetic.

    Raises:
        UnavailableError: the kernel fails on these inputs, or its output or gradients are wrong.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, length, head_dim) for heads in (n_heads, n_kv_heads, n_kv_heads, n_heads)]
    *inputs, upstream = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)

    def outcome(function: Attend, to: torch.dtype) -> list[Tensor]:
        leaves = queries, keys, values = [tensor.to(to).requires_grad_() for tensor in inputs]
        out = function(queries, keys, values, 0)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(to))]

    try:
        with torch.enable_grad():
            results, references = outcome(attend, dtype), outcome(_sdpa(SDPBackend.MATH), torch.float32)
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 150, placeholder=" ...")
        raise UnavailableError(f"fails on {tuple(shapes[0])} in {dtype}: {reason}") from error
    for result, reference in zip(results, references, strict=True):
        difference = (result.float() - reference).abs().max() / reference.abs().max()
        if not difference <= _TOLERANCE[dtype]:
            raise UnavailableError(f"is wrong by {difference:.1e} at {tuple(shapes[0])} in {dtype}")
