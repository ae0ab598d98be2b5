"""Floating-point operations of the model's mathematics, and what a device can do of them."""

import torch

from pico_ds.config import ModelConfig
from pico_ds.model.decoder import parameter_count

#: dense bf16 rate of a card with tensor cores at full clock, by a part of its name [FLOP/s]; the vendors' data sheets
_PEAK_BF16 = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def peak_flops(device: torch.device) -> float | None:
    """bf16 matrix rate of a device [FLOP/s]; None where it is not known, as on CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in _PEAK_BF16.items() if part in name), None)


def forward_flops_per_token(shape: ModelConfig, vocab_size: int, length: int, with_logits: bool) -> float:
    """Multiplications and additions of one forward pass, by token: 2 for each weight of a matrix, and attention.

    A backward pass takes twice as many. Attention is causal: 2 T d per layer on average, scores and values together.
    Source: Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, appendix B, with half of its attention for the causal mask.

    Args:
        length: of the sequences [tokens].
        with_logits: the output projection is applied.
    """
    embedding = vocab_size * shape.d_model
    body = parameter_count(shape, vocab_size) - 2 * embedding
    weights = body + (embedding if with_logits else 0)
    return 2 * weights + 2 * shape.n_layers * length * shape.d_model


def language_model_flops(shape: ModelConfig, vocab_size: int, rows: int, length: int) -> float:
    """Of one autoregressive step: forward and backward of all rows."""
    return 3 * rows * length * forward_flops_per_token(shape, vocab_size, length, with_logits=True)


def context_flops(shape: ModelConfig, vocab_size: int, length: int) -> float:
    """Of one forward pass over one context, without logits over the vocabulary."""
    return length * forward_flops_per_token(shape, vocab_size, length, with_logits=False)
