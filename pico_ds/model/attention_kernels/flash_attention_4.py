"""FlashAttention-4 as a custom operator of torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def flash_attention_4_operator(interface: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Wrap FlashAttention-4 as a custom operator, because torch.compile cannot trace its Python code.

    Uses private functions of the package. `check_kernel` checks their results first.
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
