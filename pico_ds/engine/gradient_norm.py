"""Reads the norm of the reduced gradient from DeepSpeed.

Only this module uses the private state of DeepSpeed that holds the reduced gradient. Under ZeRO 1 and 2, the norm of
DeepSpeed casts the gradient to fp64, and clipping by it waits for the device. `resolve_deepspeed_config` therefore
disables that norm, and this module computes it. `MetaEngine` clips the gradient by it.
"""

from typing import Any

import torch
from torch import Tensor

from pico_ds.engine.distributed import Process


def norm_before_step(optimizer: Any, stage: int, process: Process) -> Tensor | None:
    """Return the norm of the reduced gradient over all ranks, without waiting for the device.

    Every rank must call this.

    Returns:
        None under ZeRO 3 and with offloading, where DeepSpeed computes the norm in its step (`norm_within_step`).
    """
    if stage == 3 or optimizer.compute_grad_norm:
        return None
    # the padding of the last partition is zero
    gradients = [part for parts in optimizer.averaged_gradients.values() for part in parts]
    square = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32)).square().sum()
    return process.sum_over_ranks(square).sqrt()


def norm_within_step(optimizer: Any) -> Tensor:
    """Return the norm that DeepSpeed has computed in the current step."""
    norm = optimizer._global_grad_norm
    assert isinstance(norm, Tensor), f"the gradient norm of DeepSpeed is {norm!r}, not a tensor"
    return norm
