"""The Pico decoder: embedding, blocks, final norm and output projection."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .attention import Attend, causal_attention
from .layers import DecoderBlock, DecoderShape, RMSNorm
from .recompute import Recompute
from .rotary_embedding import rotary_angles


class PicoDecoder(nn.Module):
    """LLAMA-style causal decoder whose state dict has the names and shapes of pico-train's `PicoDecoder`."""

    def __init__(self, shape: DecoderShape, vocab_size: int) -> None:
        super().__init__()
        self.head_dim = shape.d_model // shape.attention_n_heads
        self.theta = shape.position_emb_theta
        self.embedding_proj = nn.Embedding(vocab_size, shape.d_model)
        self.layers = nn.ModuleList(DecoderBlock(shape, layer) for layer in range(shape.n_layers))
        self.output_norm = RMSNorm(shape)
        self.de_embedding_proj = nn.Linear(shape.d_model, vocab_size, bias=False)

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attend: Attend = causal_attention,
        recompute: Recompute = "none",
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the hidden states of the last block after the final norm.

        Args:
            input_ids: `[batch, seq]` token ids, right-padded.
            position_ids: `[batch, seq]`; the default is 0, 1, 2, ...
            recompute: which activations the backward pass recomputes (training.activation_checkpointing).
            states: a list to which the input of every block is appended, `[batch, seq, d_model]` each.

        Returns:
            `[batch, seq, d_model]`.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[-1], device=input_ids.device)[None]
        angles = rotary_angles(position_ids, self.head_dim, self.theta)
        x = self.embedding_proj(input_ids)
        for block in self.layers:
            if states is not None:
                states.append(x)
            x = block(x, angles, attend, recompute)
        return self.output_norm(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return next-token logits `[batch, seq, vocab_size]` for token ids `[batch, seq]`."""
        return self.de_embedding_proj(self.hidden(input_ids))


@torch.no_grad()
def initialize_weights(decoder: PicoDecoder, std: float, generator: torch.Generator) -> None:
    """Initialize weights from a normal distribution; norms are set to 1.

    The standard deviation of projections into the residual stream is scaled by 1 / sqrt(2 n_layers), as in GPT-2.
    """
    residual_std = std / math.sqrt(2 * len(decoder.layers))
    for name, weight in decoder.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
        else:
            into_residual = name.endswith(("o_proj.weight", "w_2.weight"))
            weight.normal_(0.0, residual_std if into_residual else std, generator=generator)


def parameter_count(shape: DecoderShape, vocab_size: int) -> int:
    """Return the number of parameters of a decoder, without allocating it."""
    with torch.device("meta"):
        decoder = PicoDecoder(shape, vocab_size)
    return sum(weight.numel() for weight in decoder.parameters())
