"""Cross-entropy of a linear projection, computed in chunks so that not all logits are in memory at a time."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

#: maximum number of logits in memory at a time; 1 GiB in fp32
CHUNK_LOGITS = 2**28

#: computes the loss of one chunk of tokens, and its gradients with respect to the hidden states and the weight
ChunkFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def chunk_loss_and_gradients(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the cross-entropies, and its gradients with respect to `hidden` and `weight`.

    Args:
        hidden: `[tokens, width]`.
        weight: `[vocab, width]`, in the type of `hidden`.
        targets: `[tokens]`.
    """
    logits = F.linear(hidden, weight).float()
    labels = targets[:, None]
    normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
    loss = (normaliser - logits.gather(1, labels)).sum()
    # the gradient of the logits, in place: softmax minus one-hot
    logits.sub_(normaliser).exp_().scatter_add_(1, labels, logits.new_full(labels.shape, -1.0))
    gradient = logits.to(hidden.dtype)
    del logits
    return loss, gradient @ weight, gradient.T @ hidden


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss, chunk by chunk, with no extra matrix products."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_logits: int, on_chunk: ChunkFunction
    ) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        # chunks are summed in fp32, even if the compute type is bf16
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        count = _chunks(targets, weight, chunk_logits)
        parts = (part.chunk(count) for part in (hidden, targets, hidden_gradient))
        for states, labels, out in zip(*parts, strict=True):
            part_loss, to_states, to_weight = on_chunk(states, weight, labels)
            loss += part_loss
            out.copy_(to_states)
            weight_gradient += to_weight
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = upstream[0]
        return hidden_gradient * scale, weight_gradient * scale, None, None, None


def _chunks(targets: Tensor, weight: Tensor, chunk_logits: int) -> int:
    # a rank without rows has one empty chunk
    return max(1, -(-len(targets) * len(weight) // chunk_logits))


def linear_cross_entropy(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    chunk_logits: int = CHUNK_LOGITS,
    on_chunk: ChunkFunction = chunk_loss_and_gradients,
) -> Float[Tensor, ""]:
    """Return the SUM over tokens of the cross-entropy of the logits `hidden weight^T`, fp32 [nats].

    Equals `F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")`, but never holds all logits,
    their fp32 copy and its gradient in memory. These would be by far the largest tensors of a training step.

    Args:
        chunk_logits: maximum number of logits in memory at a time.
        on_chunk: `chunk_loss_and_gradients`, possibly compiled.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_logits, on_chunk)
    return token_cross_entropies(hidden, weight, targets, chunk_logits).sum()


def token_cross_entropies(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    chunk_logits: int = CHUNK_LOGITS,
) -> Float[Tensor, " tokens"]:
    """Return the cross-entropy per token of the logits `hidden weight^T`, fp32 [nats]; 0 if the target is -100.

    Args:
        chunk_logits: maximum number of logits in memory at a time.
    """
    count = _chunks(targets, weight, chunk_logits)
    return torch.cat(
        [
            F.cross_entropy(F.linear(states, weight).float(), labels, reduction="none")
            for states, labels in zip(hidden.chunk(count), targets.chunk(count), strict=True)
        ]
    )
