"""Reads keys of pico-train and pico-maml configurations, with the defaults of these programs."""

from dataclasses import dataclass
from typing import Any

from pico_ds.errors import ConfigError

#: pico-train's defaults
PICO_TRAIN: dict[str, Any] = {
    "model.d_model": 768,
    "model.n_layers": 12,
    "model.vocab_size": 50304,
    "model.max_seq_len": 2048,
    "model.attention_n_heads": 12,
    "model.attention_n_kv_heads": 4,
    "model.activation_hidden_dim": 3072,
    "data.dataset.name": "pico-lm/pretokenized-dolma",
    "data.dataloader.batch_size": 1024,
    "data.tokenizer.name": "allenai/OLMo-7B-0724-hf",
    "training.max_steps": 200_000,
    "training.fabric.num_nodes": 1,
    "training.fabric.num_devices": 1,
    "training.fabric.precision": "bf16-mixed",
    "training.optimization.lr": 3e-4,
    "training.optimization.lr_scheduler": "linear_with_warmup",
    "training.optimization.lr_warmup_steps": 2500,
    "training.optimization.gradient_accumulation_steps": 128,
    "checkpointing.save_every_n_steps": 1000,
    "checkpointing.save_to_hf": False,
    "checkpointing.learning_dynamics.layer_suffixes": ["attention.v_proj", "attention.o_proj", "swiglu.w_2"],
    "evaluation.metrics": ["paloma"],
    "evaluation.paloma.dataset_name": "pico-lm/pretokenized-paloma-tinsy",
    "evaluation.paloma.dataset_split": "val",
    "monitoring.logging.log_every_n_steps": 100,
    "monitoring.save_to_wandb": False,
}
#: pico-maml's defaults
PICO_MAML: dict[str, Any] = PICO_TRAIN | {
    "model.max_seq_len": 4096,
    "training.fabric.num_devices": 4,
    "smlmt.enabled": False,
    "smlmt.hybrid_ratio": 0.6,
    "smlmt.inner_lr": 1e-3,
    "smlmt.inner_steps": 10,
}


@dataclass(frozen=True)
class NewEntry:
    """A key of the new configuration, with the old keys that its value comes from."""

    key: str
    value: Any
    sources: tuple[str, ...]
    comment: str


class LegacyConfig:
    """A configuration of pico-train or pico-maml. Keys that are not set have the default of that program."""

    def __init__(self, leaves: dict[str, Any], name: str) -> None:
        self.leaves = leaves
        self.name = name
        self._defaults = PICO_MAML if name == "pico-maml" else PICO_TRAIN

    def __getitem__(self, key: str) -> Any:
        return self.leaves.get(key, self._defaults.get(key))

    def first(self, *keys: str) -> Any:
        """Return the value of the first key that is set, else the default of the first key that has one."""
        values = [self.leaves[key] for key in keys if key in self.leaves]
        return next(iter([*values, *(self._defaults[key] for key in keys if key in self._defaults)]), None)

    def number(self, *keys: str) -> int:
        """Like `first`, for a value that must be a positive integer.

        Raises:
            ConfigError: the value is not a positive integer.
        """
        value = self.first(*keys)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            name = next((key for key in keys if key in self.leaves), keys[0])
            raise ConfigError(f"{name}: got {value!r}, expected a positive integer")
        return value

    def entry(self, key: str, value: Any, *sources: str, why: str = "") -> NewEntry:
        """Return an entry of the new configuration. Its comment is `why` and the sources that are set."""
        set_sources = tuple(source for source in sources if source in self.leaves)
        origin = ", ".join(set_sources) if set_sources or why else f"{self.name}'s default"
        return NewEntry(key, value, set_sources, "; ".join(filter(None, (why, origin))))

    def unset_defaults(self) -> dict[str, Any]:
        """Return the defaults of all keys that are not set."""
        return {key: value for key, value in self._defaults.items() if key not in self.leaves}
