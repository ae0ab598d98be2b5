"""Weights to begin training with: of a Pico checkpoint, or of a LLAMA model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pico_ds.config import ConfigError, ModelConfig
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.llama import from_llama, llama_name

#: what upstream's checkpoints put before every name
UPSTREAM_PREFIX = "pico_decoder."
_INDEX_NAME, _WEIGHTS_NAME = "model.safetensors.index.json", "model.safetensors"
#: rows of which there may be more than the source has: for `[MASK]` and the like
_VOCABULARY = ("embedding_proj.weight", "de_embedding_proj.weight")


def load_initial_weights(decoder: PicoDecoder, model: ModelConfig) -> None:
    """Replace the weights of a decoder by those of `model.init_from`.

    Rows of the vocabulary beyond those of the source stay as they are. A model whose output projection is its embedding
    gives both.

    Raises:
        ConfigError: no such model, one that cannot be represented, or one of another shape; the message names the keys
            of the configuration to change.
    """
    assert model.init_from is not None
    source = _Source(_directory_of(model.init_from), model.init_from)
    if changes := ", ".join(source.differences(model)):
        raise ConfigError(f"model.init_from: {model.init_from} has another shape; write {changes}")
    head_dim = model.d_model // model.attention_n_heads
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            found = source.read(name, head_dim)
            if name in _VOCABULARY and len(found) < len(weight):
                weight[: len(found)] = found
            elif found.shape == weight.shape:
                weight.copy_(found)
            else:
                raise ConfigError(
                    f"model.init_from: {model.init_from}: {name} has shape {list(found.shape)}, the configuration "
                    f"makes it {list(weight.shape)}"
                )


class _Source:
    """A model in transformers' layout."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self._config: dict[str, Any] = self._json("config.json")
        self._kind = self._config.get("model_type")
        if self._kind not in ("pico_decoder", "llama"):
            raise ConfigError(
                f"model.init_from: {name} is a model of type {self._kind!r}; pico_decoder and llama can be represented"
            )
        if (directory / _INDEX_NAME).exists():
            self._files: dict[str, str] = self._json(_INDEX_NAME)["weight_map"]
        else:
            self._files = dict.fromkeys(self._names_in(_WEIGHTS_NAME), _WEIGHTS_NAME)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self._directory / name).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.init_from: {self._name}: {name} cannot be read ({error})") from error

    def _names_in(self, file: str) -> list[str]:
        try:
            with safe_open(self._directory / file, "pt") as weights:
                return list(weights.keys())
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"model.init_from: {self._name}: {file} cannot be read ({error}); weights are taken from "
                "safetensors alone"
            ) from error

    def differences(self, model: ModelConfig) -> Iterator[str]:
        """Keys of the configuration that must be changed, and to what; nothing where it fits."""
        wanted = _pico_keys(self._config) if self._kind == "pico_decoder" else _llama_keys(self._config, self._name)
        changes = {key: value for key, value in wanted.items() if not _is_same(getattr(model, key), value)}
        yield from (f"model.{key}: {value} (got {getattr(model, key)})" for key, value in changes.items())
        rows = self._config["vocab_size"]
        if model.vocab_size is not None and model.vocab_size < rows:
            yield f"model.vocab_size: {rows}, or more (got {model.vocab_size})"

    def read(self, name: str, head_dim: int) -> Tensor:
        """The parameter of the decoder, as the decoder has it."""
        candidates = [name, UPSTREAM_PREFIX + name] if self._kind == "pico_decoder" else [llama_name(name)]
        if name == "de_embedding_proj.weight" and self._config.get("tie_word_embeddings"):
            return self.read("embedding_proj.weight", head_dim)
        for candidate in candidates:
            if (file := self._files.get(candidate)) is not None:
                with safe_open(self._directory / file, "pt") as weights:
                    found: Tensor = weights.get_tensor(candidate)
                return found if self._kind == "pico_decoder" else from_llama(name, found, head_dim)
        raise ConfigError(f"model.init_from: {self._name}: has no {candidates[0]}")


def _is_same(ours: float, theirs: float) -> bool:
    """Equal, or rounded to fp32 on the way, as in files that were GGUF."""
    return ours == theirs or bool(np.float32(ours) == np.float32(theirs))


def _pico_keys(config: dict[str, Any]) -> dict[str, Any]:
    keys = ("d_model", "n_layers", "attention_n_heads", "attention_n_kv_heads", "activation_hidden_dim")
    return {key: config[key] for key in (*keys, "norm_eps", "position_emb_theta")}


def _llama_keys(config: dict[str, Any], name: str) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    width, heads = config["hidden_size"], config["num_attention_heads"]
    unlike = {
        f"rope_type {kind}": kind != "default",
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        f"head_dim {config.get('head_dim')}": (config.get("head_dim") or width // heads) != width // heads,
        f"hidden_act {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
    }
    if found := [what for what, is_so in unlike.items() if is_so]:
        raise ConfigError(f"model.init_from: {name} has {', '.join(found)}, which a Pico decoder does not have")
    return {
        "d_model": width,
        "n_layers": config["num_hidden_layers"],
        "attention_n_heads": heads,
        "attention_n_kv_heads": config.get("num_key_value_heads") or heads,
        "activation_hidden_dim": config["intermediate_size"],
        "norm_eps": config["rms_norm_eps"],
        "position_emb_theta": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
    }


def _directory_of(init_from: str) -> Path:
    """A directory as it is; anything else is an id of the hub."""
    if (path := Path(init_from)).is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(init_from, allow_patterns=["*.safetensors", "*.json"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model.init_from: {init_from} is neither a directory nor a model of the hub that can be fetched ({error})"
        ) from error
