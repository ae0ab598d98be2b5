"""Reads model directories in transformers format, and validates everything that it reads."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pico_ds.errors import PicoError

WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
CONFIG_NAME = "config.json"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class WeightFilesError(PicoError, ValueError):
    """The directory does not contain a usable model; the message names the file."""


class WeightFiles:
    """Reads the tensors of a model from one or more safetensors files."""

    def __init__(self, directory: Path, weights_name: str = WEIGHTS_NAME) -> None:
        """
        Args:
            weights_name: file name of the weights if they are in one file.

        Raises:
            WeightFilesError: the weights cannot be read, or the index names a file outside the directory.
        """
        self.directory = directory
        index = directory / WEIGHTS_INDEX_NAME
        if weights_name == WEIGHTS_NAME and index.exists():
            self._files = self._weight_map(index)
        else:
            with self._open(weights_name) as weights:
                self._files = dict.fromkeys(weights.keys(), weights_name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._files)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, read from the file's header.

        Raises:
            WeightFilesError: the tensor does not exist or cannot be read.
        """
        with self._open(self._file_of(name)) as weights:
            return tuple(weights.get_slice(name).get_shape())

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the data type of a tensor: fp32, bf16 or fp16.

        Raises:
            WeightFilesError: the tensor has another type.
        """
        with self._open(self._file_of(name)) as weights:
            found = weights.get_slice(name).get_dtype()
        if found not in _DTYPES:
            raise WeightFilesError(
                f"{self._file_of(name)}: {name} has type {found}; the supported types are {', '.join(_DTYPES)}"
            )
        return _DTYPES[found]

    def read(self, name: str) -> Tensor:
        """Read a floating-point tensor and check that all its values are finite.

        Raises:
            WeightFilesError: the tensor does not exist, cannot be read, has another type or is not finite.
        """
        self.dtype_of(name)
        with self._open(self._file_of(name)) as weights:
            found: Tensor = weights.get_tensor(name)
        where = f"{self._file_of(name)}: {name}"
        if not bool(torch.isfinite(found).all()):
            raise WeightFilesError(f"{where} contains infinite or NaN values; the model is damaged")
        return found

    def _file_of(self, name: str) -> str:
        if name not in self._files:
            raise WeightFilesError(f"has no tensor {name}")
        return self._files[name]

    def _weight_map(self, index: Path) -> dict[str, str]:
        content = read_json(index)
        found = content.get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
            raise WeightFilesError(f"{index.name}: has no weight_map that maps tensor names to file names")
        for file in found.values():
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise WeightFilesError(
                    f"{index.name}: names the file {file!r}; only safetensors files in the same directory are allowed"
                )
        return found

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        path = self.directory / file
        try:
            if not path.is_file():
                raise FileNotFoundError("no such file")
            with safe_open(path, "pt") as weights:
                yield weights
        except (OSError, SafetensorError) as error:
            raise WeightFilesError(
                f"{path.name}: cannot be read ({_reason(error)}); weights must be in safetensors files"
            ) from error


def read_config(directory: Path) -> dict[str, Any]:
    """Return the contents of a model's config.json.

    Raises:
        WeightFilesError: the file cannot be read or is not a JSON object.
    """
    return read_json(directory / CONFIG_NAME)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        WeightFilesError: the file cannot be read or is not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightFilesError(f"{path.name}: cannot be read ({_reason(error)})") from error
    if not isinstance(found, dict):
        raise WeightFilesError(f"{path.name}: contains a {type(found).__name__}; it must be a JSON object")
    return found


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def checked_int(config: dict[str, Any], key: str) -> int:
    """Return the value of a key in config.json, which must be an integer of at least 1.

    Raises:
        WeightFilesError: the key is missing or has another value.
    """
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise WeightFilesError(f"{CONFIG_NAME}: {key} is {value!r}; it must be an integer of at least 1")
    return value


def checked_float(config: dict[str, Any], key: str) -> float:
    """Return the value of a key in config.json, which must be a finite number above 0.

    Raises:
        WeightFilesError: the key is missing or has another value.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise WeightFilesError(f"{CONFIG_NAME}: {key} is {value!r}; it must be a number above 0")
    return float(value)
