"""The type that each precision computes in; master weights, moments and fast weights are fp32 in all."""

import torch

from pico_ds.config.field_types import Precision

COMPUTE_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
