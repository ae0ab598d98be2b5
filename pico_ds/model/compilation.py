"""Settings and helpers for torch.compile."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
import torch.compiler.config

#: limit on the graphs per function; torch.compile stops compiling a function that exceeds its limit
_MAX_GRAPHS = 64
_CACHE_TAG = "pico_ds-no-donation"


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """Compile a function into one full graph, without graph breaks, for each input shape."""
    prepare_compiler()
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def prepare_compiler() -> None:
    """Configure torch.compile for the whole process. Call this before the first graph is compiled.

    Raises the limit on graphs per function, because each shape needs one graph with gradients and one without.

    Disables buffer donation. The support pass is differentiated twice, by the inner loop and through the prototypes, so
    a backward pass must not overwrite what its forward pass saved. Torch decides on donation at the first backward
    pass only, and the key of its disk cache does not include the decision. A cached graph with donation would silently
    give wrong gradients, so the cache key gets a tag.
    """
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MAX_GRAPHS)
    torch._functorch.config.donated_buffer = False
    if _CACHE_TAG not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += _CACHE_TAG


def why_not_compile() -> str | None:
    """Return the reason why torch.compile cannot compile for a GPU here, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    compiler = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["gcc", "clang", "cc"])):
        return f"no C compiler was found ({compiler or 'gcc, clang, cc'}); on Debian and Ubuntu: apt install gcc"
    return None
