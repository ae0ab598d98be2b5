"""Builds the device guard, and loads it before torch."""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")


def build_guard(library: Path) -> None:
    """Compile the guard with the headers of the installed torch. Takes 10 CPU seconds."""
    root = _torch_directory()
    include = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    link = [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    command = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", *include, str(SOURCE), "-o", str(library), *link]
    subprocess.run(command, check=True)


def load_guard(library: Path) -> None:
    """Register the guard. It must be loaded before torch, which otherwise registers its own."""
    assert "torch" not in sys.modules, "torch is already imported"
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _torch_directory() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent
