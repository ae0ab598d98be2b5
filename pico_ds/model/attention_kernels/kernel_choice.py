"""Chooses the attention kernel for each sequence length, and checks its results."""

from __future__ import annotations

import logging
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pico_ds.config import ConfigError
from pico_ds.model.attention import Attend
from pico_ds.model.attention_kernels.kernel_loading import (
    BACKENDS,
    SDPA_BACKENDS,
    Backend,
    UnavailableError,
    load_backend,
    math_attention,
)

logger = logging.getLogger(__name__)

#: under vmap, torch does not detect that a gradient will be needed; these kernels then save nothing for backward
_NOT_UNDER_VMAP = {"cudnn", "sdpa_efficient"}
#: last cuDNN release that accesses memory out of bounds unless the length is a multiple of 128 (pytorch issue 169849)
_CUDNN_LAST_WRONG_VERSION, _CUDNN_LENGTH_MULTIPLE = 91500, 128
#: largest allowed difference from fp32 arithmetic, relative to the largest value; bf16 has 8 bits of precision
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
#: log lines already written, because a run builds several networks
_logged: set[str] = set()
#: a length that no kernel restricts to multiples of a power of two
_ODD_LENGTH = 129


class AttentionShape(NamedTuple):
    """The properties of attention that decide which kernels work, except the length."""

    device: torch.device
    dtype: torch.dtype
    n_heads: int
    n_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Kernel:
    """A kernel that works here. Two kernels are equal if they have one name and treat keys in the same way."""

    name: Backend
    repeat_keys: bool
    attend: Attend = field(compare=False)


def choose_attention(
    requested: Backend | Literal["auto"], shape: AttentionShape, lengths: Sequence[int]
) -> tuple[dict[int, Kernel], Attend]:
    """Return the kernel of each length, and an attention function that selects the kernel by length.

    The kernel is the requested one, or with `auto` the fastest one that works at this length. A kernel works if its
    output and gradients match fp32 arithmetic on random inputs. Other lengths than the given ones use the kernel of the
    longest one, or the kernel of an odd length if cuDNN's kernel does not work for all lengths.

    Raises:
        ConfigError: the requested kernel does not work; the message says how to install it.
    """
    kernels = {length: _choose_kernel(requested, shape, length) for length in sorted(lengths)}
    other = kernels[max(kernels)]
    if any(kernel.name == "cudnn" for kernel in kernels.values()) and not _cudnn_supports(_ODD_LENGTH):
        other = _choose_kernel("auto", shape, _ODD_LENGTH)
    if {*kernels.values()} == {other}:
        return kernels, other.attend
    by_length = {length: kernel.attend for length, kernel in kernels.items()}

    def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
        return by_length.get(queries.shape[-2], other.attend)(queries, keys, values, layer)

    return kernels, attend


def _choose_kernel(requested: Backend | Literal["auto"], shape: AttentionShape, length: int) -> Kernel:
    """Return the requested kernel, or with `auto` the fastest one that works at this length. Logs the choice."""
    problems: list[str] = []
    for name in BACKENDS if requested == "auto" else (requested,):
        for repeat_keys in (False, True) if name in SDPA_BACKENDS and shape.n_kv_heads < shape.n_heads else (False,):
            try:
                attend = load_backend(name, shape.device, repeat_keys)
                if name == "cudnn":
                    _check_cudnn(length)
                with warnings.catch_warnings():
                    # torch warns about every reason why a kernel is unsupported; the error is enough
                    warnings.simplefilter("ignore")
                    check_kernel(attend, shape, length)
            except UnavailableError as problem:
                message = f"{name}: {problem}"
                # a missing kernel gives the same message with and without repeated keys
                problems += [message] if message not in problems else []
                continue
            how = "keys and values repeated for each query head" if repeat_keys else f"model.attention: {requested}"
            message = f"attention of {length} tokens: {name} ({how}){''.join(f'; not {p}' for p in problems)}"
            if message not in _logged:
                _logged.add(message)
                logger.info("%s", message)
            return Kernel(name, repeat_keys, attend)
    raise ConfigError(
        f"model.attention: {'; '.join(problems)}. Choose another one of auto, {', '.join(BACKENDS)}; auto finds the "
        "fastest available kernel"
    )


def choose_batched_attention(chosen: Kernel, shape: AttentionShape, length: int) -> tuple[Backend, Attend]:
    """Return an attention kernel that supports `torch.func.vmap`, which batches the tasks.

    The candidates are the chosen kernel, torch's flash kernel, and finally plain operations.
    """
    candidates: list[tuple[Backend, Attend]] = []
    if chosen.name not in _NOT_UNDER_VMAP:
        candidates.append((chosen.name, chosen.attend))
    candidates += [("sdpa_flash", load_backend("sdpa_flash", shape.device, repeat)) for repeat in (False, True)]
    problems: dict[str, str] = {}
    for name, candidate in candidates:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # a kernel without a batching rule runs task by task, with this warning
                warnings.filterwarnings("error", message=".*batching rule")
                check_kernel(_under_vmap(candidate), shape, length)
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


def _check_cudnn(length: int) -> None:
    if not _cudnn_supports(length):
        raise UnavailableError(
            f"cuDNN {torch.backends.cudnn.version()} gives wrong results unless the length is a multiple of "
            f"{_CUDNN_LENGTH_MULTIPLE} (got {length}); install a newer torch or nvidia-cudnn"
        )


def _cudnn_supports(length: int) -> bool:
    version = torch.backends.cudnn.version() or 0
    return version > _CUDNN_LAST_WRONG_VERSION or length % _CUDNN_LENGTH_MULTIPLE == 0


def check_kernel(attend: Attend, shape: AttentionShape, length: int) -> None:
    """Check the output and gradients of a kernel against fp32 arithmetic.

    Raises:
        UnavailableError: the kernel fails on these inputs, or its output or gradients are wrong.
    """
    generator = torch.Generator().manual_seed(0)
    heads = (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads, shape.n_heads)
    sizes = [(2, count, length, shape.head_dim) for count in heads]
    *inputs, upstream = (torch.randn(size, generator=generator).to(shape.device, shape.dtype) for size in sizes)

    def outcome(function: Attend, to: torch.dtype) -> list[Tensor]:
        leaves = queries, keys, values = [tensor.to(to).requires_grad_() for tensor in inputs]
        out = function(queries, keys, values, 0)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(to))]

    try:
        with torch.enable_grad():
            results, references = outcome(attend, shape.dtype), outcome(math_attention, torch.float32)
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 150, placeholder=" ...")
        raise UnavailableError(f"fails on {sizes[0]} in {shape.dtype}: {reason}") from error
    for result, reference in zip(results, references, strict=True):
        difference = (result.float() - reference).abs().max() / reference.abs().max()
        if not difference <= _TOLERANCE[shape.dtype]:
            raise UnavailableError(f"is wrong by {difference:.1e} at {sizes[0]} in {shape.dtype}")
