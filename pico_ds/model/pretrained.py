"""Loads initial weights from a Pico checkpoint or a LLAMA model (`model.init_from`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pico_ds.config import ConfigError, ModelConfig
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.llama import from_llama, llama_name
from pico_ds.model.weight_files import WeightFiles, WeightFilesError, checked_float, checked_int, read_config

#: prefix of every parameter name in pico-train checkpoints
UPSTREAM_PREFIX = "pico_decoder."
#: parameters that may have more rows than the source, for added tokens such as `[MASK]`
_VOCABULARY = ("embedding_proj.weight", "de_embedding_proj.weight")


def load_initial_weights(decoder: PicoDecoder, model: ModelConfig) -> None:
    """Replace the weights of a decoder with those of `model.init_from`.

    Vocabulary rows beyond those of the source keep their values. If the source ties its embeddings, both the embedding
    and the output projection get the tied weights.

    Raises:
        ConfigError: the model does not exist, is damaged, has an unsupported architecture, or has another shape. For
            another shape, the message lists the configuration keys to change.
    """
    assert model.init_from is not None
    directory = _directory_of(model.init_from)
    try:
        _copy_weights(_Source(directory), decoder, model)
    except WeightFilesError as error:
        raise ConfigError(f"model.init_from: {model.init_from}: {error}") from error


def _copy_weights(source: "_Source", decoder: PicoDecoder, model: ModelConfig) -> None:
    if changes := ", ".join(source.differences(model)):
        raise WeightFilesError(f"has a different shape; set {changes}")
    head_dim = model.d_model // model.attention_n_heads
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            shape = (source.vocab_size, *weight.shape[1:]) if name in _VOCABULARY else tuple(weight.shape)
            weight[: shape[0]] = source.read(name, shape, head_dim)


class _Source:
    """A model directory in transformers format."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            WeightFilesError: the model cannot be read, or a Pico decoder cannot represent it.
        """
        self._config = read_config(directory)
        self._kind = self._config.get("model_type")
        if self._kind not in ("pico_decoder", "llama"):
            raise WeightFilesError(f"has model_type {self._kind!r}; the supported types are pico_decoder and llama")
        self.vocab_size = checked_int(self._config, "vocab_size")
        self._files = WeightFiles(directory)

    def differences(self, model: ModelConfig) -> Iterator[str]:
        """Yield the configuration keys that must change to match the source, with their values."""
        required = _pico_keys(self._config) if self._kind == "pico_decoder" else _llama_keys(self._config)
        changes = {key: value for key, value in required.items() if not _is_same(getattr(model, key), value)}
        yield from (f"model.{key}: {value} (got {getattr(model, key)})" for key, value in changes.items())
        if model.vocab_size is not None and model.vocab_size < self.vocab_size:
            yield f"model.vocab_size: at least {self.vocab_size} (got {model.vocab_size})"

    def read(self, name: str, shape: tuple[int, ...], head_dim: int) -> Tensor:
        """Read a decoder parameter, converted to Pico's layout.

        Raises:
            WeightFilesError: the parameter is missing, damaged, or has another shape.
        """
        candidates = [name, UPSTREAM_PREFIX + name] if self._kind == "pico_decoder" else [llama_name(name)]
        if name == "de_embedding_proj.weight" and self._config.get("tie_word_embeddings"):
            return self.read("embedding_proj.weight", shape, head_dim)
        candidate = next((found for found in candidates if found in self._files.names), candidates[0])
        if (found := self._files.shape_of(candidate)) != shape:
            raise WeightFilesError(f"{candidate} has shape {list(found)}, but config.json implies {list(shape)}")
        weight = self._files.read(candidate)
        return weight if self._kind == "pico_decoder" else from_llama(name, weight, head_dim)


def _is_same(first: float, second: float) -> bool:
    """Return whether two values are equal up to fp32 rounding, which affects models converted from GGUF."""
    return first == second or bool(np.float32(first) == np.float32(second))


def _pico_keys(config: dict[str, Any]) -> dict[str, Any]:
    sizes = ("d_model", "n_layers", "attention_n_heads", "attention_n_kv_heads", "activation_hidden_dim")
    constants = ("norm_eps", "position_emb_theta")
    return {key: checked_int(config, key) for key in sizes} | {key: checked_float(config, key) for key in constants}


def _llama_keys(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise WeightFilesError(f"config.json: rope_parameters is {rope!r}; it must be a JSON object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    width, heads = checked_int(config, "hidden_size"), checked_int(config, "num_attention_heads")
    unsupported = {
        f"rope_type {kind}": kind != "default",
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        f"head_dim {config.get('head_dim')}": (config.get("head_dim") or width // heads) != width // heads,
        f"hidden_act {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
    }
    if found := [setting for setting, is_set in unsupported.items() if is_set]:
        raise WeightFilesError(f"has {', '.join(found)}, which a Pico decoder does not support")
    theta = {"rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0))}
    return {
        "d_model": width,
        "n_layers": checked_int(config, "num_hidden_layers"),
        "attention_n_heads": heads,
        "attention_n_kv_heads": checked_int(config, "num_key_value_heads")
        if config.get("num_key_value_heads") is not None
        else heads,
        "activation_hidden_dim": checked_int(config, "intermediate_size"),
        "norm_eps": checked_float(config, "rms_norm_eps"),
        "position_emb_theta": checked_float(theta, "rope_theta"),
    }


def _directory_of(init_from: str) -> Path:
    """Return the path of a local directory, or of the downloaded model with this Hugging Face Hub id."""
    if (path := Path(init_from)).is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(init_from, allow_patterns=["*.safetensors", "*.json"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model.init_from: {init_from} is neither a directory nor a model on the Hub that can be downloaded "
            f"({error})"
        ) from error
