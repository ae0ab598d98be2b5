"""A model's directory in the layout of transformers, of which nothing is believed that was not checked."""

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
    """A directory that holds no model that can be used; the message names the file."""


class WeightFiles:
    """Reads config.json and the tensors of one or several safetensors files."""

    def __init__(self, directory: Path, weights_name: str = WEIGHTS_NAME) -> None:
        """
        Args:
            weights_name: the file of a model that is not split into several.

        Raises:
            WeightFilesError: no weights that can be read, or an index that names files outside of the directory.
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
        """Names of the tensors."""
        return tuple(self._files)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            WeightFilesError: there is no such tensor, or it cannot be read.
        """
        with self._open(self._file_of(name)) as weights:
            return tuple(weights.get_slice(name).get_shape())

    def dtype_of(self, name: str) -> torch.dtype:
        """Type of a tensor.

        Raises:
            WeightFilesError: it is none that weights are written in.
        """
        with self._open(self._file_of(name)) as weights:
            found = weights.get_slice(name).get_dtype()
        if found not in _DTYPES:
            raise WeightFilesError(
                f"{self._file_of(name)}: {name} is of type {found}; {', '.join(_DTYPES)} can be used"
            )
        return _DTYPES[found]

    def read(self, name: str) -> Tensor:
        """A tensor of floating-point numbers, all of which are finite.

        Raises:
            WeightFilesError: there is no such tensor, it cannot be read, or it holds something else.
        """
        self.dtype_of(name)
        with self._open(self._file_of(name)) as weights:
            found: Tensor = weights.get_tensor(name)
        where = f"{self._file_of(name)}: {name}"
        if not bool(torch.isfinite(found).all()):
            raise WeightFilesError(f"{where} holds values that are infinite or not a number; the model is damaged")
        return found

    def _file_of(self, name: str) -> str:
        if name not in self._files:
            raise WeightFilesError(f"has no {name}")
        return self._files[name]

    def _weight_map(self, index: Path) -> dict[str, str]:
        content = read_json(index)
        found = content.get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
            raise WeightFilesError(f"{index.name}: has no weight_map from names to files")
        for file in found.values():
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise WeightFilesError(
                    f"{index.name}: names the file {file!r}; only safetensors files beside the index are read"
                )
        return found

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        path = self.directory / file
        try:
            if not path.is_file():
                raise FileNotFoundError("there is no such file")
            with safe_open(path, "pt") as weights:
                yield weights
        except (OSError, SafetensorError) as error:
            raise WeightFilesError(
                f"{path.name}: cannot be read ({_reason(error)}); weights are taken only from safetensors"
            ) from error


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model.

    Raises:
        WeightFilesError: it cannot be read, or is not a JSON object.
    """
    return read_json(directory / CONFIG_NAME)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightFilesError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightFilesError(f"{path.name}: cannot be read ({_reason(error)})") from error
    if not isinstance(found, dict):
        raise WeightFilesError(f"{path.name}: holds a {type(found).__name__}; a JSON object is needed")
    return found


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def checked_int(config: dict[str, Any], key: str) -> int:
    """A size in a config.json: 1 or more.

    Raises:
        WeightFilesError: it is missing or something else.
    """
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise WeightFilesError(f"{CONFIG_NAME}: {key} is {value!r}; an integer, 1 or more, is needed")
    return value


def checked_float(config: dict[str, Any], key: str) -> float:
    """A constant in a config.json: above 0.

    Raises:
        WeightFilesError: it is missing or something else.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise WeightFilesError(f"{CONFIG_NAME}: {key} is {value!r}; a number above 0 is needed")
    return float(value)
