"""The only package that imports deepspeed."""

import os

import torch

if not torch.cuda.is_available():
    # said before deepspeed is imported, so that it does not warn that it had to guess
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
