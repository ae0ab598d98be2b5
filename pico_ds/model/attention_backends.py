"""The choice of an attention kernel: every one that is there computes the same, at another speed."""

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
#: by speed of a forward and backward pass on an H100 (docs/performance.md); auto takes the first that works
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    # the only fused kernel of a GPU for fp32
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
#: Under vmap torch does not see that a gradient will be asked for, and these leave out what their backward pass needs.
_NOT_UNDER_VMAP = {"cudnn", "sdpa_efficient"}
#: last release that reads and writes beyond the end where a length is no multiple of 128 (pytorch issue 169849)
_CUDNN_WRONG_UNTIL, _CUDNN_RIGHT_LENGTHS = 91500, 128
#: module, and how to install it
_PACKAGES = {
    "flash_attn": ("flash_attn", "pip install flash-attn --no-build-isolation (needs nvcc)"),
    "flash_attn_3": ("flash_attn_interface", "build `hopper` of github.com/Dao-AILab/flash-attention (needs nvcc)"),
    "flash_attn_4": ("flash_attn.cute", "pip install --pre flash-attn-4"),
}
#: largest difference from fp32 arithmetic, over the largest value; bf16 has 8 bits
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}


class UnavailableError(Exception):
    """A kernel that is not installed, or does not run here."""


#: lines about kernels that were logged; a run makes several networks
_said: set[str] = set()


def choose_attention(
    wanted: Backend | Literal["auto"],
    device: torch.device,
    dtype: torch.dtype,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    lengths: Sequence[int],
) -> tuple[Backend, Attend]:
    """The kernel asked for, or with auto the fastest that works here; the choice is logged.

    A kernel works when its output and gradients are those of fp32 arithmetic, on random inputs of the lengths given.

    Raises:
        ConfigError: the kernel asked for is not there; the message says how to get it.
    """
    problems: list[str] = []
    for name in BACKENDS if wanted == "auto" else (wanted,):
        for repeat_keys in (False, True) if name in _SDPA and n_kv_heads < n_heads else (False,):
            try:
                attend = load_backend(name, device, repeat_keys)
                if name == "cudnn":
                    _check_cudnn(lengths)
                for length in lengths:
                    with warnings.catch_warnings():
                        # torch warns once for each reason that a kernel has for refusing; the error says enough
                        warnings.simplefilter("ignore")
                        probe(attend, device, dtype, n_heads, n_kv_heads, head_dim, length)
            except UnavailableError as problem:
                said = f"{name}: {problem}"
                # with keys repeated it is the same, where the kernel is not there at all
                problems += [said] if said not in problems else []
                continue
            how = "keys and values repeated for each query head" if repeat_keys else f"model.attention: {wanted}"
            said = f"attention: {name} ({how}){''.join(f'; not {problem}' for problem in problems)}"
            if said not in _said:
                _said.add(said)
                logger.info("%s", said)
            return name, attend
    raise ConfigError(
        f"model.attention: {'; '.join(problems)}. Take another one of auto, {', '.join(BACKENDS)}; auto finds the "
        "fastest that is there"
    )


def attention_of_several_tasks(
    chosen: Backend,
    attend: Attend,
    device: torch.device,
    dtype: torch.dtype,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    length: int,
) -> tuple[Backend, Attend]:
    """The kernel chosen where it knows `torch.func.vmap`, by which tasks run together; else torch's flash kernel, and
    where that does not know it either, plain operations.
    """
    candidates: list[tuple[Backend, Attend]] = [(chosen, attend)] if chosen not in _NOT_UNDER_VMAP else []
    candidates += [("sdpa_flash", load_backend("sdpa_flash", device, repeat)) for repeat in (False, True)]
    problems: dict[str, str] = {}
    for name, candidate in candidates:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # a kernel without a rule runs task by task, and says so
                warnings.filterwarnings("error", message=".*batching rule")
                probe(_under_vmap(candidate), device, dtype, n_heads, n_kv_heads, head_dim, length)
        except UnavailableError as problem:
            problems.setdefault(name, f"{name} {problem}")
            continue
        logger.info("attention of tasks that are computed together: %s", name)
        return name, candidate
    logger.info("attention of tasks that are computed together: plain operations (%s)", "; ".join(problems.values()))
    return "math", math_attention


def _under_vmap(attend: Attend) -> Attend:
    def together(queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        def alone(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attend(queries, keys, values, layer)

        return torch.func.vmap(alone)(queries[:, None], keys[:, None], values[:, None])[:, 0]

    return together


def _check_cudnn(lengths: Sequence[int]) -> None:
    version = torch.backends.cudnn.version() or 0
    if version <= _CUDNN_WRONG_UNTIL and any(length % _CUDNN_RIGHT_LENGTHS for length in lengths):
        raise UnavailableError(
            f"cuDNN {version} is wrong for lengths that are no multiple of {_CUDNN_RIGHT_LENGTHS} (here {lengths}); "
            "install a newer torch, or nvidia-cudnn"
        )


def load_backend(name: Backend, device: torch.device, repeat_keys: bool = False) -> Attend:
    """A kernel by name.

    Args:
        repeat_keys: give every query head a copy of its keys and values, for kernels of torch that want one.

    Raises:
        UnavailableError: it is not installed, or not for this kind of device.
    """
    if name in _SDPA:
        if name == "cudnn" and device.type != "cuda":
            raise UnavailableError(f"needs an NVIDIA GPU, this is {device.type}")
        return _sdpa(_SDPA[name], repeat_keys)
    if device.type != "cuda":
        raise UnavailableError(f"needs an NVIDIA GPU, this is {device.type}")
    module, how = _PACKAGES[name]
    try:
        package: Any = importlib.import_module(module)
        function = package.flash_attn_func
        interface: Any = importlib.import_module("flash_attn.cute.interface") if name == "flash_attn_4" else None
    except Exception as error:  # whatever a package for another GPU, CUDA or torch does when it is imported
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


#: of torch's own operations alone, which every transformation of functions knows
math_attention = _sdpa(SDPBackend.MATH)


def _direct(function: Callable[[Tensor, Tensor, Tensor], Any]) -> Attend:
    """A package's own function, which wants `[batch, seq, heads, head_dim]` and takes fewer key heads as they are."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
        mixed = function(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        # some versions give the logarithm of the normaliser, too
        return (mixed[0] if isinstance(mixed, tuple) else mixed).transpose(1, 2)

    return attend


def _opaque(interface: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlashAttention-4 as an operator that torch.compile takes as it is; its own is Python that cannot be traced.

    Private functions of the package; `probe` compares what they compute before they are used.
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
        """Tasks become a part of the batch, of which attention is independent."""
        tasks_first = (tensor.movedim(dim, 0) for tensor, dim in zip(inputs, in_dims, strict=True))
        found = forward(*(tensor.flatten(0, 1) for tensor in tasks_first))
        out, normaliser = (tensor.unflatten(0, (info.batch_size, -1)) for tensor in found)
        return (out, normaliser), (0, 0)

    def keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    def differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return backward(gradient.contiguous(), *ctx.saved_tensors)

    forward.register_autograd(differentiate, setup_context=keep)
    return lambda queries, keys, values: forward(queries, keys, values)[0]


def probe(
    attend: Attend, device: torch.device, dtype: torch.dtype, n_heads: int, n_kv_heads: int, head_dim: int, length: int
) -> None:
    """Compare a kernel with fp32 arithmetic.

    Raises:
        UnavailableError: it refuses these inputs, or its output or gradients are wrong.
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
            got, wanted = outcome(attend, dtype), outcome(_sdpa(SDPBackend.MATH), torch.float32)
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 150, placeholder=" ...")
        raise UnavailableError(f"fails for {tuple(shapes[0])} in {dtype}: {reason}") from error
    for mine, reference in zip(got, wanted, strict=True):
        difference = (mine.float() - reference).abs().max() / reference.abs().max()
        if not difference <= _TOLERANCE[dtype]:
            raise UnavailableError(f"is wrong by {difference:.1e} at {tuple(shapes[0])} in {dtype}")
