"""Collectives of one outer step, counted at the dispatcher, below DeepSpeed and torch.distributed."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountCollectives(TorchDispatchMode):
    """Calls and input bytes of every c10d operation while it is entered."""

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
