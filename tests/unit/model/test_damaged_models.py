"""Loading or exporting a damaged model directory fails with one sentence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pico_ds.checkpoint.llama_and_pico_train_export import LLAMA, PICO_TRAIN, export_model
from pico_ds.config import ConfigError
from pico_ds.errors import CheckpointError
from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig
from pico_ds.model.weight_files import WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from tests.unit.model.test_pretrained import SHAPE, decoder_of

EMBEDDING = "embedding_proj.weight"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An intact Pico model."""
    directory = tmp_path_factory.mktemp("intact")
    PicoDecoderHF(PicoDecoderHFConfig(**SHAPE, vocab_size=97, norm_eps=1e-5)).save_pretrained(directory)
    decoder_of(directory)
    return directory


@pytest.fixture
def model(intact: Path, tmp_path: Path) -> Path:
    """A copy of the intact model that a test may damage."""
    return Path(shutil.copytree(intact, tmp_path / "model"))


def config(**changes: Any) -> Callable[[Path], None]:
    """Change keys of config.json. None removes a key."""

    def damage(directory: Path) -> None:
        content = json.loads((directory / "config.json").read_text()) | changes
        kept = {name: value for name, value in content.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(kept))

    return damage


def content(name: str, text: str | bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(text.encode() if isinstance(text, str) else text) and None


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    """Replace a tensor. None removes it."""

    def damage(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS_NAME)
        changed = change(tensors.pop(name))
        save_file(tensors | ({} if changed is None else {name: changed}), directory / WEIGHTS_NAME)

    return damage


def with_index(files: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    """Add a modified index of the weights file."""

    def damage(directory: Path) -> None:
        (directory.parent / "outside.safetensors").write_bytes((directory / WEIGHTS_NAME).read_bytes())
        weight_map = dict.fromkeys(load_file(directory / WEIGHTS_NAME), WEIGHTS_NAME)
        (directory / WEIGHTS_INDEX_NAME).write_text(json.dumps(files(weight_map)))

    return damage


def named(file: Any) -> Callable[[Path], None]:
    return with_index(lambda weight_map: {"weight_map": {**weight_map, EMBEDDING: file}})


def replaced(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / WEIGHTS_NAME).unlink()
        make(directory / WEIGHTS_NAME)

    return damage


def poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda weight: weight.index_put((torch.tensor(3), torch.tensor(3)), torch.tensor(value))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "config a list": content("config.json", "[]"),
    "config a number": content("config.json", "5"),
    "config not UTF-8": content("config.json", b"\xff\xfe{"),
    "config nested": content("config.json", "[" * 100_000),
    "config cut off": content("config.json", '{"model_type": "pico_'),
    "config without vocab_size": config(vocab_size=None),
    "config without d_model": config(d_model=None),
    "no heads": config(attention_n_heads=0),
    "no key heads": config(attention_n_kv_heads=0),
    "heads a text": config(attention_n_heads="4"),
    "heads true": config(attention_n_heads=True),
    "negative width": config(d_model=-32),
    "10^13 layers": config(n_layers=10**13),
    "epsilon a list": config(norm_eps=[1]),
    "embedding [1]": tensor(EMBEDDING, lambda weight: weight[0, :1].clone()),
    "embedding [97, 1]": tensor(EMBEDDING, lambda weight: weight[:, :1].clone()),
    "embedding [1, 32]": tensor(EMBEDDING, lambda weight: weight[:1].clone()),
    "embedding of no rows": tensor(EMBEDDING, lambda weight: weight[:0].clone()),
    "embedding [96, 32]": tensor(EMBEDDING, lambda weight: weight[:96].clone()),
    "embedding int32": tensor(EMBEDDING, lambda weight: weight.int()),
    "embedding NaN": tensor(EMBEDDING, poisoned(float("nan"))),
    "embedding infinite": tensor(EMBEDDING, poisoned(float("inf"))),
    "norm NaN": tensor("output_norm.weight", lambda weight: weight * float("nan")),
    "no embedding": tensor(EMBEDDING, lambda _: None),
    "weights gone": replaced(lambda _: None),
    "weights empty": replaced(lambda path: path.touch()),
    "weights a directory": replaced(lambda path: path.mkdir()),
    "weights a pipe": replaced(lambda path: os.mkfifo(path)),
    "weights a circle": replaced(lambda path: path.symlink_to(path.name)),
    "weights cut off": lambda path: os.truncate(path / WEIGHTS_NAME, 1000),
    "header beyond the end": content(WEIGHTS_NAME, (10**9).to_bytes(8, "little") + b"{}"),
    "index without weight_map": with_index(lambda _: {}),
    "index a list": with_index(lambda _: []),
    "weight_map a list": with_index(lambda _: {"weight_map": []}),
    "a missing shard": named("model-00002.safetensors"),
    "a shard outside": named("../outside.safetensors"),
    "an absolute shard": named("/etc/passwd"),
    "a shard a number": named(5),
    "a shard that is pickled": named("pytorch_model.bin"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_model_is_not_loaded(model: Path, damage: Callable[[Path], None]) -> None:
    damage(model)
    with pytest.raises(ConfigError, match=r"^model\.init_from: ") as caught:
        decoder_of(model)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("layout", [LLAMA, PICO_TRAIN], ids=["llama", "pico-train"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_model_is_not_exported(model: Path, damage: Callable[[Path], None], layout: Any) -> None:
    damage(model)
    out = model.parent / "out"
    with pytest.raises(CheckpointError):
        export_model(model, out, layout)
    assert sorted(path.name for path in model.parent.iterdir() if path.suffix != ".safetensors") == ["model"]
