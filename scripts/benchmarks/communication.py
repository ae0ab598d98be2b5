"""Counts the collectives of one outer step in the PyTorch dispatcher, below DeepSpeed and torch.distributed."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountCollectives(TorchDispatchMode):
    """Context manager that counts the calls and payload bytes of every c10d operation.

    The payload of a call is its largest tensor argument.

    Attributes:
        calls: operation -> number of calls.
        bytes: operation -> payload bytes of all calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__.split(".")[0].strip("_")
            self.calls[name] += 1
            self.bytes[name] += max(
                (leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)), default=0
            )
        return func(*args, **(kwargs or {}))
