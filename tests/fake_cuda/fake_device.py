"""A fake CUDA device that counts its memory, and every place where the host waits for it."""

import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
#: the caching allocator rounds sizes up to multiples of this [bytes]
_ALLOCATION_BYTES = 512
#: operations whose inputs must have one type, which fake tensors do not check
_MATRIX_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
#: operations whose result, or its shape, the host needs before it continues
_HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique", "equal")


class FakeDevice(TorchDispatchMode):
    """Counts live bytes and waits.

    Attributes:
        waits: host reads and copies between host and device that block the host, by the line of the package.
        peak_bytes: largest number of bytes that were alive at the same time.
        live_bytes: bytes that are alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.live_bytes = self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if name.startswith(_HOST_READS) and any(value.device.type == "cuda" for value in inputs):
            self.waits[f"{name} in {_place()}"] += 1
        if name == "_local_scalar_dense":
            # a fake tensor has no value
            return 1.0 if inputs[0].is_floating_point() else 1
        if name in _MATRIX_PRODUCTS and len({value.dtype for value in inputs}) > 1:
            raise RuntimeError(f"{name} of {[value.dtype for value in inputs]} in {_place()}")
        if _is_blocking_copy(name, inputs, args, kwargs):
            self.waits[f"{name} in {_place()}"] += 1
        result = func(*args, **kwargs)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self._known:
            return
        size = -(-storage.nbytes() // _ALLOCATION_BYTES) * _ALLOCATION_BYTES
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._known.add(key)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.live_bytes -= size


def _is_blocking_copy(name: str, inputs: list[Tensor], args: Any, kwargs: Any) -> bool:
    if name == "_to_copy":
        source, target = inputs[0].device, torch.device(kwargs.get("device") or inputs[0].device)
        is_async = kwargs.get("non_blocking", False)
    elif name == "copy_":
        source, target = inputs[-1].device, inputs[0].device
        is_async = kwargs.get("non_blocking", len(args) > 2 and args[2])
    else:
        return False
    return source.type != target.type and not is_async


def _place() -> str:
    """The innermost function of the package on the stack."""
    for frame in reversed(traceback.extract_stack()):
        if "/pico_ds/" in frame.filename:
            return f"{frame.filename.rsplit('/pico_ds/', 1)[-1]}::{frame.name}"
    return "outside of the package"


@contextmanager
def fake_device() -> Iterator[FakeDevice]:
    """Make all tensors fake inside the block. Every tensor that takes part must be created in it."""
    with FakeTensorMode(allow_non_fake_inputs=False), FakeDevice() as device:
        yield device


class FakeEvent:
    """Replaces `torch.cuda.Event`."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...


def flash_attention(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
    """torch's flash kernel by its operator, which `scaled_dot_product_attention` calls on a GPU in bf16."""
    groups = queries.shape[-3] // keys.shape[-3]
    keys, values = (states.repeat_interleave(groups, dim=-3) for states in (keys, values))
    return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, True)[0]


def cudnn_attention(queries: Tensor, keys: Tensor, values: Tensor, layer: int = 0) -> Tensor:
    """cuDNN's kernel by its operator, with fewer heads of keys than of queries."""
    return torch.ops.aten._scaled_dot_product_cudnn_attention(queries, keys, values, None, True, 0.0, True)[0]
