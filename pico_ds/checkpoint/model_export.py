"""A checkpoint as other programs load it: a plain LLAMA model, or a model in the layout of pico-train."""

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
from pico_ds.checkpoint.safetensors_stream import SafetensorsWriter, cannot_write
from pico_ds.errors import CheckpointError
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.llama import llama_name, to_llama
from pico_ds.model.pretrained import UPSTREAM_PREFIX
from pico_ds.model.weight_files import WeightFiles, WeightFilesError, checked_float, checked_int, read_config
from pico_ds.progress import track

_SIZES = ("d_model", "n_layers", "attention_n_heads", "attention_n_kv_heads", "activation_hidden_dim")
#: of the tokenizer, and of what `generate` needs
_KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "special_token_ids.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Layout:
    """Where another program looks for what a checkpoint holds.

    Attributes:
        name: of a parameter, from its name in the decoder.
        tensor: a parameter as that program has it, from its name in the decoder, itself, and head_dim.
        config: config.json, from the checkpoint's.
        has_code: modeling code goes with it.
    """

    name: Callable[[str], str]
    tensor: Callable[[str, Tensor, int], Tensor]
    config: Callable[[dict[str, Any]], dict[str, Any]]
    has_code: bool


def export_model(checkpoint: Path, out: Path, layout: Layout) -> int:
    """Write a directory that transformers and other tools load; one tensor at a time is in memory.

    Returns:
        the number of parameters.

    Raises:
        CheckpointError: no weights of a Pico decoder; `out` is there already, or cannot be written.
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
        raise WeightFilesError(f"{WEIGHTS_NAME}: {error}; give a checkpoint of this package") from error
    shapes = _shapes_of(config, len(files.names))
    if out.exists():
        raise CheckpointError(f"{out} is there already; give a directory that is not")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        code = [path.name for path in checkpoint.glob("*.py")] if layout.has_code else []
        for name in (*_KEPT, *code):
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
            f"{checkpoint}: is a model of type {config.get('model_type')!r}; give a checkpoint of this package"
        )
    return config


def _shapes_of(config: dict[str, Any], n_tensors: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a decoder with this config.json."""
    sizes = {key: checked_int(config, key) for key in (*_SIZES, "vocab_size", "max_seq_len")}
    constants = {key: checked_float(config, key) for key in ("norm_eps", "position_emb_theta", "initializer_range")}
    if sizes["d_model"] % sizes["attention_n_heads"] or sizes["attention_n_heads"] % sizes["attention_n_kv_heads"]:
        raise WeightFilesError("config.json: attention_n_kv_heads divides attention_n_heads, which divides d_model")
    shape = SimpleNamespace(**sizes, **constants)
    with torch.device("meta"):
        # one block tells the shapes of all: the number of them is not to be believed before it is checked
        one = PicoDecoder(SimpleNamespace(**{**vars(shape), "n_layers": 1}), sizes["vocab_size"])
    of_one = {name: tuple(weight.shape) for name, weight in one.named_parameters()}
    block = {name: found for name, found in of_one.items() if name.startswith("layers.0.")}
    if n_tensors != len(of_one) + (sizes["n_layers"] - 1) * len(block):
        raise WeightFilesError(f"has {n_tensors} tensors, which are not those of {sizes['n_layers']} layers")
    others = {
        name.replace("layers.0.", f"layers.{layer}.", 1): found
        for layer in range(1, sizes["n_layers"])
        for name, found in block.items()
    }
    return {**of_one, **others}


def _write_weights(
    files: WeightFiles, shapes: Mapping[str, tuple[int, ...]], head_dim: int, out: Path, layout: Layout
) -> int:
    # pico-train's names as well as those of this package
    names = {name: name.removeprefix(UPSTREAM_PREFIX) for name in files.names}
    found = {names[name]: files.shape_of(name) for name in files.names}
    for name in {**shapes, **found}:
        if found.get(name) != shapes.get(name):
            there, wanted = (list(each[name]) if name in each else "not there" for each in (found, shapes))
            raise CheckpointError(f"{files.directory}: {name} is {there}, config.json makes it {wanted}")
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
    # for readers older than rope_parameters
    return {**found, "rope_theta": theta, "torch_dtype": config.get("dtype")}


def _pico_train_config(config: dict[str, Any]) -> dict[str, Any]:
    # pico-train's own class knows no default for it, though a model that is loaded has no use for it
    return {"batch_size": None, **config}


#: a plain `LlamaForCausalLM`, which needs no code of this package
LLAMA = Layout(llama_name, to_llama, _llama_config, has_code=False)
#: names and configuration of the checkpoints that pico-train publishes
PICO_TRAIN = Layout(
    lambda name: UPSTREAM_PREFIX + name, lambda _, weight, __: weight, _pico_train_config, has_code=True
)
