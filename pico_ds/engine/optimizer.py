"""Builds AdamW and computes the learning rate of each outer step."""

import math
from typing import Any

import torch
from torch import nn

from pico_ds.config import TrainingConfig


def build_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). Norms, biases and embeddings do not decay."""
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for weight in module.parameters():
        (undecayed if weight.ndim < 2 or id(weight) in embeddings else decayed).append(weight)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    # torch's AdamW, because DeepSpeed's own would compile for 90 s
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps, fused=True
    )


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of an outer step, counted from 0: a linear warm-up, then the schedule until max_steps.

    It depends only on the step, so there is no scheduler state to save.
    """
    if step < config.lr_warmup_steps:
        return config.lr * (step + 1) / config.lr_warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    done = (step - config.lr_warmup_steps) / max(1, config.max_steps - config.lr_warmup_steps)
    left = 1 - done if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * left)
