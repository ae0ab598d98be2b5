"""Floating-point operations that the model needs, and the peak rate of a device."""

import torch

from pico_ds.config import ModelConfig
from pico_ds.model.decoder import parameter_count

#: dense bf16 tensor-core rate at full clock [FLOP/s], by a part of the GPU's name; from the vendors' data sheets
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
    """Return the peak dense bf16 rate of a device [FLOP/s]; None if it is unknown, as for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in _PEAK_BF16.items() if part in name), None)


def forward_flops_per_token(shape: ModelConfig, vocab_size: int, length: int, with_logits: bool) -> float:
    """Return the FLOPs per token of one forward pass: 2 per matrix weight, plus attention.

    A backward pass needs twice as many. Causal attention needs 2 T d per layer on average, scores and values together.
    Source: Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, appendix B, with attention halved for the causal mask.

    Args:
        length: sequence length [tokens].
        with_logits: whether to count the output projection.
    """
    embedding = vocab_size * shape.d_model
    body = parameter_count(shape, vocab_size) - 2 * embedding
    weights = body + (embedding if with_logits else 0)
    return 2 * weights + 2 * shape.n_layers * length * shape.d_model


def language_model_flops(shape: ModelConfig, vocab_size: int, rows: int, length: int) -> float:
    """Return the FLOPs of one autoregressive step: the forward and backward passes over all rows."""
    return 3 * rows * length * forward_flops_per_token(shape, vocab_size, length, with_logits=True)


def context_flops(shape: ModelConfig, vocab_size: int, length: int) -> float:
    """Return the FLOPs of one forward pass over one context, without the output projection."""
    return length * forward_flops_per_token(shape, vocab_size, length, with_logits=False)
