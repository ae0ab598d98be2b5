"""Attention kernels agree with fp64 arithmetic. A kernel that is not available is a clear error."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pico_ds.config import ConfigError, MetaConfig
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.attention import Attend, causal_attention
from pico_ds.model.attention_kernels import kernel_choice, kernel_loading
from pico_ds.model.attention_kernels.flash_attention_4 import flash_attention_4_operator
from pico_ds.model.attention_kernels.kernel_choice import (
    AttentionShape,
    Kernel,
    check_kernel,
    choose_attention,
    choose_batched_attention,
)
from pico_ds.model.attention_kernels.kernel_loading import BACKENDS, Backend, UnavailableError, load_backend
from tests.fomaml_reference import SHAPE, random_episode, relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU_SHAPE = AttentionShape(torch.device("cpu"), torch.float32, n_heads=4, n_kv_heads=2, head_dim=16)


def textbook(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
    """softmax(Q K^T / sqrt(d) + mask) V in fp64, with keys and values repeated."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    later = torch.ones(scores.shape[-2:], device=scores.device).triu(1).bool()
    return scores.masked_fill(later, -math.inf).softmax(-1) @ values


def here(name: Backend, dtype: torch.dtype, head_dim: int) -> Attend:
    try:
        attend = load_backend(name, DEVICE)
        check_kernel(attend, AttentionShape(DEVICE, dtype, 4, 2, head_dim), 9)
    except UnavailableError as problem:
        pytest.skip(str(problem))
    return attend


@pytest.mark.parametrize("name", [*BACKENDS, "default"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("length", [1, 17, 64])
def test_forward_and_gradients(name: str, dtype: torch.dtype, heads: int, kv_heads: int, length: int) -> None:
    if name == "cudnn" and length == 1:
        pytest.skip("cuDNN takes no sequence of one token")
    attend = causal_attention if name == "default" else here(name, dtype, head_dim=16)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, count, length, 16) for count in (heads, kv_heads, kv_heads, heads)]
    *inputs, upstream = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)

    def outcome(function: Callable[..., Tensor], to: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(to).requires_grad_() for tensor in inputs]
        out = function(*leaves, 0)
        return [out, *torch.autograd.grad(out, leaves, upstream.to(to))]

    for got, wanted in zip(outcome(attend, dtype), outcome(textbook, torch.float64), strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        # at length 1 the gradients of queries and keys are zero
        assert (got.double() - wanted).abs().max() <= tolerance * max(1.0, float(wanted.detach().abs().max()))


def test_keys_are_repeated_for_kernels_without_grouped_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def without_groups(*tensors: Tensor, is_causal: bool, enable_gqa: bool) -> Tensor:
        if enable_gqa and torch.nn.attention._cur_sdpa_kernel_backends()[0] != torch.nn.attention.SDPBackend.MATH:
            raise RuntimeError("no kernel")
        return sdpa(*tensors, is_causal=is_causal, enable_gqa=enable_gqa)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", without_groups)
    _, attend = choose_attention("sdpa_flash", CPU_SHAPE, [9])
    queries, keys, values = (torch.randn(1, heads, 9, 16) for heads in (4, 2, 2))
    wanted = textbook(queries.double(), keys.double(), values.double())
    torch.testing.assert_close(attend(queries, keys, values, 0), wanted.float())


def test_auto_selects_the_first_kernel_that_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pico_ds")
    kernels, _ = choose_attention("auto", CPU_SHAPE, [9])
    assert kernels[9].name == "sdpa_flash"
    monkeypatch.setitem(kernel_loading.SDPA_BACKENDS, "sdpa_flash", kernel_loading.SDPBackend.CUDNN_ATTENTION)
    kernels, _ = choose_attention("auto", CPU_SHAPE, [9])
    assert kernels[9].name == "math"


def test_torch_warnings_about_unusable_kernels_are_hidden(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """torch warns about each reason why a kernel is unusable. Only a missing `vmap` rule affects the choice."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
        warnings.warn("Memory efficient kernel not used because: ...", stacklevel=1)
        return causal_attention(queries, keys, values)

    monkeypatch.setattr(kernel_choice, "load_backend", lambda *_: attend)
    kernels, _ = choose_attention("math", CPU_SHAPE, [9])
    assert choose_batched_attention(kernels[9], CPU_SHAPE, 9)[0] == "math"
    assert not recwarn.list


def test_auto_skips_a_kernel_with_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "load_backend", lambda *_: lambda q, k, v, *_: causal_attention(q, k, v) * 1.001)
    with pytest.raises(ConfigError, match=r"model\.attention: math: is wrong by 1\.0e-03"):
        choose_attention("math", CPU_SHAPE, [9])


@pytest.mark.parametrize("name", ["cudnn", "flash_attn", "flash_attn_3", "flash_attn_4"])
def test_error_names_the_unavailable_kernel(name: Backend) -> None:
    with pytest.raises(ConfigError, match=rf"model\.attention: {name}: needs an NVIDIA GPU.*auto finds the fastest"):
        choose_attention(name, CPU_SHAPE, [9])


def test_error_says_how_to_install_a_missing_kernel_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernel_loading._PACKAGES, "flash_attn_4", ("no_such_package", "pip install it"))
    with pytest.raises(UnavailableError, match=r"no_such_package cannot be imported .*; pip install it"):
        load_backend("flash_attn_4", torch.device("cuda"))


class FlashAttention4OnCpu:
    """A CPU version of the two FlashAttention-4 functions that the package uses."""

    @staticmethod
    def _flash_attn_fwd(q: Tensor, k: Tensor, v: Tensor, causal: bool, return_lse: bool) -> tuple[Tensor, ...]:
        assert causal
        assert return_lse
        out = causal_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).contiguous()
        return out, torch.zeros(q.shape[0], q.shape[2], q.shape[1]), None, None, None  # type: ignore[return-value]

    @staticmethod
    def _flash_attn_bwd(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, causal: bool
    ) -> tuple[Tensor, ...]:
        groups, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
        q, k, v, dout = (x.transpose(1, 2) for x in (q, k, v, dout))
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        later = torch.ones(q.shape[-2], q.shape[-2]).triu(1).bool()
        p = (q @ k.mT * scale).masked_fill(later, -math.inf).softmax(-1)
        dp = dout @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
        dk, dv = (x.unflatten(1, (-1, groups)).sum(2) for x in (ds.mT @ q, p.mT @ dout))
        return tuple(x.transpose(1, 2).contiguous() for x in (ds @ k, dk, dv))


@pytest.mark.parametrize("mode", ["none", "model"])
def test_gradients_agree_for_all_kernels_compiled_and_eager(mode: str) -> None:
    """SDPA with a fixed kernel and an opaque operator both work under functional_call and torch.compile."""
    meta = MetaConfig()
    module = build_meta_model(SHAPE, meta, 3, vocab_size=61, seed=0)
    theta = {name: weight.detach().requires_grad_() for name, weight in module.named_parameters()}
    contexts = random_episode(0).support

    def gradient(attend: Attend | None, mode: str) -> dict[str, Tensor]:
        skeleton = build_model_skeleton(SHAPE, meta, 3, 61, *([attend] if attend else []))
        network = FunctionalModel(skeleton, torch.float32, 4.0, mode, "aot_eager")  # type: ignore[arg-type]
        loss = network.features(theta, contexts, "fim").pow(3).sum()
        found = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
        return {name: value for name, value in zip(theta, found, strict=True) if value is not None}

    wanted = gradient(None, "none")
    opaque = kernel_loading._direct(flash_attention_4_operator(FlashAttention4OnCpu))
    for attend in (load_backend("math", DEVICE), load_backend("sdpa_flash", DEVICE), opaque):
        assert relative_error(gradient(attend, mode), wanted) < 1e-5


def test_batched_tasks_use_a_kernel_that_supports_vmap(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="pico_ds")
    plain = load_backend("math", DEVICE)
    assert choose_batched_attention(Kernel("math", False, plain), CPU_SHAPE, 9) == ("math", plain)
    opaque = kernel_loading._direct(flash_attention_4_operator(FlashAttention4OnCpu))
    kernel = Kernel("flash_attn_4", False, opaque)
    assert choose_batched_attention(kernel, CPU_SHAPE, 9) == ("flash_attn_4", opaque)
    # the CPU's flash kernel has no vmap rule, so vmap would run it task by task
    kernel = Kernel("sdpa_flash", False, load_backend("sdpa_flash", torch.device("cpu")))
    assert choose_batched_attention(kernel, CPU_SHAPE, 9) == ("math", kernel_loading.math_attention)
    assert "attention for batched tasks: plain operations" in caplog.text


@pytest.mark.parametrize("chosen", ["cudnn", "sdpa_efficient"])
def test_batched_tasks_never_call_kernels_that_fail_under_vmap(
    monkeypatch: pytest.MonkeyPatch, chosen: Backend
) -> None:
    """The backward pass of cuDNN fails under vmap, so batched tasks use the flash kernel."""

    def untouchable(*_: object) -> Tensor:
        raise AssertionError("was called")

    opaque = kernel_loading._direct(flash_attention_4_operator(FlashAttention4OnCpu))
    monkeypatch.setattr(kernel_choice, "load_backend", lambda *_: opaque)
    kernel = Kernel(chosen, False, untouchable)
    assert choose_batched_attention(kernel, CPU_SHAPE, 9) == ("sdpa_flash", opaque)


@pytest.mark.parametrize(
    ("version", "length", "allowed"), [(91500, 2048, True), (91500, 64, False), (91501, 64, True), (None, 64, False)]
)
def test_cudnn_releases_that_write_out_of_bounds_are_rejected(
    monkeypatch: pytest.MonkeyPatch, version: int | None, length: int, allowed: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    if allowed:
        kernel_choice._check_cudnn(length)
    else:
        with pytest.raises(UnavailableError, match="unless the length is a multiple of 128"):
            kernel_choice._check_cudnn(length)


@pytest.mark.parametrize("requested", ["auto", "cudnn"])
def test_rows_keep_cudnn_if_contexts_cannot_use_it(monkeypatch: pytest.MonkeyPatch, requested: Backend) -> None:
    """The simulated cuDNN works only at multiples of 128. Each call records its kernel."""
    calls: list[str] = []

    def load(name: Backend, device: torch.device, repeat_keys: bool = False) -> Attend:
        if name not in ("cudnn", "sdpa_flash"):
            raise UnavailableError("not installed")

        def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
            calls.append(name)
            return causal_attention(queries, keys, values)

        return attend

    monkeypatch.setattr(kernel_choice, "load_backend", load)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91500)
    lengths = [128, 67] if requested == "auto" else [128]
    kernels, attend = choose_attention(requested, CPU_SHAPE, lengths)
    assert kernels[128].name == "cudnn"
    calls.clear()
    for length in (128, 67, 40, 256):
        attend(*(torch.zeros(1, heads, length, 16) for heads in (4, 2, 2)), 0)
    # lengths that were not checked, such as 256, use the kernel that works at every length
    assert calls == ["cudnn", "sdpa_flash", "sdpa_flash", "sdpa_flash"]
    if requested == "auto":
        assert kernels[67].name == "sdpa_flash"
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92000)
    kernels, attend = choose_attention("auto", CPU_SHAPE, [128, 67])
    calls.clear()
    attend(*(torch.zeros(1, heads, 40, 16) for heads in (4, 2, 2)), 0)
    assert calls == ["cudnn"]
