"""The norm of the reduced gradient, wherever DeepSpeed holds that between its reduction and its optimizer step.

Private state of DeepSpeed, used in this module alone. DeepSpeed's own norm under ZeRO 1 and 2 casts the gradient to
fp64, and clipping by it waits for the device; so it is switched off (`resolve_deepspeed_config`) and taken here.
"""

from typing import Any

import torch
from torch import Tensor

from pico_ds.engine.distributed import Process


def norm_before_step(optimizer: Any, stage: int, process: Process) -> Tensor | None:
    """Under ZeRO 1 and 2: the norm over all ranks of the gradient that the last reduction left, without a sync.

    A collective. None under ZeRO 3 and with offloading, where DeepSpeed takes it itself in its step.
    """
    if stage == 3 or optimizer.compute_grad_norm:
        return None
    # what pads the last partition is zero
    held = [part for parts in optimizer.averaged_gradients.values() for part in parts]
    square = torch.stack(torch._foreach_norm(held, 2, dtype=torch.float32)).square().sum()
    return process.sum_over_ranks(square).sqrt()


def norm_within_step(optimizer: Any) -> Tensor:
    """Where DeepSpeed took it, seen from the optimizer inside."""
    norm = optimizer._global_grad_norm
    assert isinstance(norm, Tensor), f"DeepSpeed's norm of the gradient is {norm!r}, not a tensor"
    return norm
