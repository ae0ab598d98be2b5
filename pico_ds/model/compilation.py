"""How torch.compile is used here."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
import torch.compiler.config

#: that torch.compile may make of one function before it gives up
_MOST_GRAPHS = 64
_CACHE_TAG = "pico_ds-no-donation"


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """A function as one graph for every shape that it meets, without a break."""
    prepare_compiler()
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def prepare_compiler() -> None:
    """Settings of the whole process, which must stand before the first graph is made.

    One graph for every length of contexts and rows, with gradients and without. And no donation: a backward pass may
    not overwrite what its forward pass saved, because the support pass is differentiated twice, by the inner loop and
    through the prototypes. Torch decides about donation by the first backward pass alone, and its cache on the disk
    does not tell the two kinds of graphs apart: loaded from there, the donating kind gives wrong gradients without a
    word.
    """
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_GRAPHS)
    torch._functorch.config.donated_buffer = False
    if _CACHE_TAG not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += _CACHE_TAG


def why_not_compile() -> str | None:
    """What torch.compile needs on a GPU and does not find; None where it finds everything."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    compiler = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["gcc", "clang", "cc"])):
        return f"no C compiler was found ({compiler or 'gcc, clang, cc'}): Debian and Ubuntu: apt install gcc"
    return None
