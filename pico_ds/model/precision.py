"""Compute type of each precision. Master weights, optimizer moments and fast weights are always fp32."""

import torch

from pico_ds.config.field_types import Precision

COMPUTE_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
