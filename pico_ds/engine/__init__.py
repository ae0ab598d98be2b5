"""Runs the model and the optimizer under DeepSpeed. No other package imports deepspeed."""

import os

import torch

if not torch.cuda.is_available():
    # set before deepspeed is imported, because it warns if it has to guess the accelerator
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
