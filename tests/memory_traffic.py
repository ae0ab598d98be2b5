"""Counts the memory traffic [bytes] and the synchronizations with the host of an outer step, per operation."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: operations for whose result the host waits
_SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
#: operations that read no tensor
_FILLS = ("zeros", "zeros_like", "new_zeros", "zero_", "ones", "full", "fill_", "new_full")
_ALLOCATIONS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


class CountTraffic(TorchDispatchMode):
    """Context manager that counts bytes read and written and synchronizations, by operation of this thread.

    A fused operation counts every tensor once. A collective counts the tensors that it sends and receives. The
    synchronizations on a CPU are those of a GPU, because the same operations copy values to the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in _SYNCS:
            self.syncs[name] += 1
        if func.is_view or name in ("detach", *_ALLOCATIONS):
            return out
        read, written = _nbytes((args, kwargs)), _nbytes(out)
        if name in _FILLS:
            read = 0
        elif name == "copy_":
            read = _nbytes(args[1])
        elif name == "_fused_adamw_":
            # parameters, gradients and moments; the operation also writes back the clipped gradients
            read = written = _nbytes(args[:4])
        elif name.startswith("_foreach") and name.endswith("_"):
            written = _nbytes(args[0])
        self.bytes[name] += read + written
        return out


def _nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
