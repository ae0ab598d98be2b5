"""A checkpoint as other programs load it: a plain LLAMA model, or a model in the layout of pico-train."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pico_ds.checkpoint.errors import CheckpointError
from pico_ds.checkpoint.stream import SafetensorsWriter, cannot_write
from pico_ds.checkpoint.weights import WEIGHTS_NAME
from pico_ds.model.llama import llama_name, to_llama
from pico_ds.model.pretrained import UPSTREAM_PREFIX

_TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
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
    config = _config_of(checkpoint)
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
        count = _write_weights(checkpoint, partial, config["d_model"] // config["attention_n_heads"], layout)
        (partial / "config.json").write_text(json.dumps(layout.config(config), indent=2) + "\n")
        partial.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _config_of(checkpoint: Path) -> dict[str, Any]:
    try:
        config = json.loads((checkpoint / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}: holds no config.json that can be read ({error})") from error
    if config.get("model_type") != "pico_decoder":
        raise CheckpointError(
            f"{checkpoint}: is a model of type {config.get('model_type')!r}; give a checkpoint of this package"
        )
    return config


def _write_weights(checkpoint: Path, out: Path, head_dim: int, layout: Layout) -> int:
    try:
        with safe_open(checkpoint / WEIGHTS_NAME, "pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            # pico-train's names as well as those of this package
            names = {name: name.removeprefix(UPSTREAM_PREFIX) for name in slices}
            entries = {
                layout.name(names[name]): (_dtype_of(checkpoint, name, part.get_dtype()), tuple(part.get_shape()))
                for name, part in slices.items()
            }
            with SafetensorsWriter(out / WEIGHTS_NAME, entries, {"format": "pt"}) as writer:
                for name in slices:
                    writer.append(layout.tensor(names[name], weights.get_tensor(name), head_dim).contiguous())
                writer.finish()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint / WEIGHTS_NAME}: cannot be read ({error})") from error
    except ValueError as error:
        raise CheckpointError(f"{checkpoint / WEIGHTS_NAME}: {error}; give a checkpoint of this package") from error
    return sum(torch.Size(shape).numel() for _, shape in entries.values())


def _dtype_of(checkpoint: Path, name: str, dtype: str) -> torch.dtype:
    if dtype not in _TORCH_DTYPES:
        raise CheckpointError(
            f"{checkpoint / WEIGHTS_NAME}: {name} is of type {dtype}; {', '.join(_TORCH_DTYPES)} can be exported"
        )
    return _TORCH_DTYPES[dtype]


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
