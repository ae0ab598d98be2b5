"""Exports a checkpoint as a plain LLAMA model, or in the layout of pico-train."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pico_ds.checkpoint.huggingface_export import WEIGHTS_NAME
from pico_ds.checkpoint.safetensors_writer import SafetensorsWriter, cannot_write
from pico_ds.errors import CheckpointError
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.llama import llama_name, to_llama
from pico_ds.model.pretrained import UPSTREAM_PREFIX
from pico_ds.model.weight_files import WeightFiles, WeightFilesError, checked_float, checked_int, read_config
from pico_ds.progress import track

_SIZES = ("d_model", "n_layers", "attention_n_heads", "attention_n_kv_heads", "activation_hidden_dim")
#: files that are copied: the tokenizer, and the settings of `generate`
_COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "special_token_ids.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Layout:
    """How another program stores a model.

    Attributes:
        name: maps the name of a parameter in the decoder to its name in the layout.
        tensor: maps (name in the decoder, parameter, head_dim) to the parameter of the layout.
        config: maps config.json of the checkpoint to config.json of the layout.
        has_code: whether the modeling code is copied.
    """

    name: Callable[[str], str]
    tensor: Callable[[str, Tensor, int], Tensor]
    config: Callable[[dict[str, Any]], dict[str, Any]]
    has_code: bool


def export_model(checkpoint: Path, out: Path, layout: Layout) -> int:
    """Write a model directory in another layout. Memory holds one tensor at a time.

    Returns:
        the number of parameters.

    Raises:
        CheckpointError: the checkpoint has no weights of a Pico decoder, or `out` exists or cannot be written.
    """
    try:
        return _export(checkpoint, out, layout)
    except WeightFilesError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


def _export(checkpoint: Path, out: Path, layout: Layout) -> int:
    config = _config_of(checkpoint)
    files = WeightFiles(checkpoint)
    try:
        for name in files.names:
            llama_name(name.removeprefix(UPSTREAM_PREFIX))
    except ValueError as error:
        raise WeightFilesError(f"{WEIGHTS_NAME}: {error}; give a checkpoint of pico_ds") from error
    shapes = _shapes_of(config, len(files.names))
    if out.exists():
        raise CheckpointError(f"{out} already exists; choose another directory")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        code = [path.name for path in checkpoint.glob("*.py")] if layout.has_code else []
        for name in (*_COPIED_FILES, *code):
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, partial / name)
        head_dim = config["d_model"] // config["attention_n_heads"]
        count = _write_weights(files, shapes, head_dim, partial, layout)
        (partial / "config.json").write_text(json.dumps(layout.config(config), indent=2) + "\n")
        partial.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _config_of(checkpoint: Path) -> dict[str, Any]:
    config = read_config(checkpoint)
    if config.get("model_type") != "pico_decoder":
        raise CheckpointError(
            f"{checkpoint}: has model_type {config.get('model_type')!r}, not 'pico_decoder'; "
            "give a checkpoint of pico_ds"
        )
    return config


def _shapes_of(config: dict[str, Any], n_tensors: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters of a decoder, from its config.json."""
    sizes = {key: checked_int(config, key) for key in (*_SIZES, "vocab_size", "max_seq_len")}
    constants = {key: checked_float(config, key) for key in ("norm_eps", "position_emb_theta", "initializer_range")}
    if sizes["d_model"] % sizes["attention_n_heads"] or sizes["attention_n_heads"] % sizes["attention_n_kv_heads"]:
        raise WeightFilesError(
            "config.json: attention_n_kv_heads must divide attention_n_heads, which must divide d_model"
        )
    shape = SimpleNamespace(**sizes, **constants)
    with torch.device("meta"):
        # all blocks have equal shapes; build only one, because n_layers is not checked yet and may be huge
        decoder = PicoDecoder(SimpleNamespace(**{**vars(shape), "n_layers": 1}), sizes["vocab_size"])
    first = {name: tuple(weight.shape) for name, weight in decoder.named_parameters()}
    block = {name: size for name, size in first.items() if name.startswith("layers.0.")}
    if n_tensors != len(first) + (sizes["n_layers"] - 1) * len(block):
        raise WeightFilesError(f"has {n_tensors} tensors, which does not match n_layers = {sizes['n_layers']}")
    other_blocks = {
        name.replace("layers.0.", f"layers.{layer}.", 1): size
        for layer in range(1, sizes["n_layers"])
        for name, size in block.items()
    }
    return {**first, **other_blocks}


def _write_weights(
    files: WeightFiles, shapes: Mapping[str, tuple[int, ...]], head_dim: int, out: Path, layout: Layout
) -> int:
    # accept the names of pico-train and of pico_ds
    names = {name: name.removeprefix(UPSTREAM_PREFIX) for name in files.names}
    found = {names[name]: files.shape_of(name) for name in files.names}
    for name in {**shapes, **found}:
        if found.get(name) != shapes.get(name):
            actual, expected = (list(each[name]) if name in each else "missing" for each in (found, shapes))
            raise CheckpointError(f"{files.directory}: {name} is {actual}, but config.json implies {expected}")
    dtypes = {name: files.dtype_of(name) for name in files.names}
    entries = {layout.name(names[name]): (dtypes[name], shapes[names[name]]) for name in files.names}
    with SafetensorsWriter(out / WEIGHTS_NAME, entries, {"format": "pt"}) as writer:
        for name in track(files.names, "writing tensors", len(files.names)):
            writer.append(layout.tensor(names[name], files.read(name), head_dim).contiguous())
        writer.finish()
    return sum(torch.Size(shape).numel() for _, shape in entries.values())


def _llama_config(config: dict[str, Any]) -> dict[str, Any]:
    from transformers import LlamaConfig

    heads, width, theta = config["attention_n_heads"], config["d_model"], config["position_emb_theta"]
    found = LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=width,
        intermediate_size=config["activation_hidden_dim"],
        num_hidden_layers=config["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config["attention_n_kv_heads"],
        head_dim=width // heads,
        max_position_embeddings=config["max_seq_len"],
        rms_norm_eps=config["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        initializer_range=config["initializer_range"],
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=config.get("bos_token_id"),
        eos_token_id=config.get("eos_token_id"),
        pad_token_id=config.get("pad_token_id"),
        architectures=["LlamaForCausalLM"],
        dtype=config.get("dtype"),
    ).to_dict()
    # transformers versions without rope_parameters read these keys
    return {**found, "rope_theta": theta, "torch_dtype": config.get("dtype")}


def _pico_train_config(config: dict[str, Any]) -> dict[str, Any]:
    # the class of pico-train requires this key, although a loaded model does not use it
    return {"batch_size": None, **config}


#: a plain `LlamaForCausalLM`, which needs no code of pico_ds
LLAMA = Layout(llama_name, to_llama, _llama_config, has_code=False)
#: names and configuration of the checkpoints that pico-train publishes
PICO_TRAIN = Layout(
    lambda name: UPSTREAM_PREFIX + name, lambda _, weight, __: weight, _pico_train_config, has_code=True
)
