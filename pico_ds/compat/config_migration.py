"""Converts a configuration of pico-train or pico-maml to a configuration of pico_ds, key by key (`legacy_keys`)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from pico_ds.compat.legacy_configs import LegacyConfig, NewEntry
from pico_ds.config.legacy_keys import KEPT_KEYS, MOVED_KEYS, moved
from pico_ds.config.loading import all_keys, parse_config
from pico_ds.config.schema import RunConfig
from pico_ds.config.yaml_parsing import parse_yaml
from pico_ds.errors import ConfigError

_DATASET, _BATCH = "data.dataset.name", "data.dataloader.batch_size"
_ACCUMULATION = "training.optimization.gradient_accumulation_steps"
_DEVICES, _NODES = ("training.fabric.num_devices", "training.fabric.devices"), "training.fabric.num_nodes"
_SAVING = "checkpointing.save_every_n_steps"
#: pico-maml's default layer suffixes, which do not exist in its model -> the suffixes of the intended modules
_LAYER_SUFFIXES = {f"feed_forward.w_{number}": f"swiglu.w_{number}" for number in range(3)}

#: number of predicted tokens in a row of pico-lm/pretokenized-dolma
_ROW_TOKENS = 2048

#: values that pico-train and pico-maml hard-code
_FIXED: dict[str, Any] = {
    "training.final_lr_ratio": 0.0,
    "training.weight_decay": 0.01,
    "training.adam_beta2": 0.999,
    "training.max_grad_norm": 0.0,
}
#: values that pico-maml hard-codes (docs/learners.md)
_RECIPE: dict[str, Any] = {"meta.learner": "anil", "meta.head": "vocab", "smlmt.readout": "mask"}


@dataclass(frozen=True)
class Migration:
    """A converted configuration.

    Attributes:
        text: the new YAML, with the source of each value as a comment.
        notes: the keys that were left out, each with a reason, and other remarks.
    """

    text: str
    config: RunConfig
    notes: tuple[str, ...]


def migrate(text: str, name: str = "<text>") -> Migration:
    """Convert the YAML of a pico-train or pico-maml run.

    Raises:
        ConfigError: the text is not YAML, is already a configuration of pico_ds, or has a value without a counterpart;
            or the result is not a valid configuration.
    """
    tree = parse_yaml(text, name, is_yaml_1_1=True)
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} must contain the sections of a pico-train or pico-maml configuration, got {tree!r}")
    leaves = {key: value for key, value in _leaves(tree) if value is not None or key.count(".")}
    new_keys = [key for key in leaves if key in {*all_keys()} - {*KEPT_KEYS} and moved(key) is None]
    if new_keys:
        raise ConfigError(
            f"{name}: {new_keys[0]} is a key of pico_ds and not of pico-train or pico-maml; the file is already a "
            "configuration of pico_ds, or mixes keys of both; remove the pico_ds keys, and add them to the new file"
        )
    old = LegacyConfig(leaves, "pico-maml" if _is_pico_maml(leaves) else "pico-train")
    try:
        entries = _new_entries(old)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    notes = (*_notes(old, entries),)
    new = _text(old, entries, notes, name)
    return Migration(new, parse_config(new, name=f"{name}, migrated"), notes)


def _is_pico_maml(leaves: Mapping[str, Any]) -> bool:
    early_keys = ("training.inner_learning_rate", "training.num_inner_steps", "training.meta_batch_size")
    return any(key.startswith("smlmt") or key in early_keys for key in leaves)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, dotted)
        else:
            yield dotted, value


def _new_entries(old: LegacyConfig) -> list[NewEntry]:
    """Return the entries of the new configuration, each key once. Computed values take precedence over copied ones."""
    found: dict[str, NewEntry] = {}
    for entry in (*_model(old), *_data(old), *_tasks(old), *_checkpointing(old), *_evaluation(old)):
        found.setdefault(entry.key, entry)
    for key, value in (old.leaves | old.unset_defaults()).items():
        # "" means unset in pico-train
        if value is None or value == "":
            continue
        entry_of = MOVED_KEYS.get(key)
        if key in KEPT_KEYS:
            found.setdefault(key, old.entry(key, value, key))
        elif entry_of is not None and entry_of.convert is not None:
            try:
                converted = entry_of.convert(value)
            except (ConfigError, TypeError, ValueError) as error:
                raise ConfigError(f"{key}: {error}") from None
            found.setdefault(entry_of.to[0], old.entry(entry_of.to[0], converted, key))
    for key, value in _FIXED.items():
        found.setdefault(key, old.entry(key, value, why=f"hard-coded in {old.name}"))
    order = [*all_keys()]
    return sorted(found.values(), key=lambda entry: order.index(entry.key))


def _model(old: LegacyConfig) -> Iterator[NewEntry]:
    sizes = ("model.vocab_size", "data.tokenizer.vocab_size")
    yield old.entry("model.vocab_size", old.first(*sizes), *sizes)
    kv_heads_key = "model.attention_n_kv_heads"
    if old[kv_heads_key] is None:
        yield old.entry(
            kv_heads_key, old["model.attention_n_heads"], kv_heads_key, why="null means as many as query heads"
        )


def _data(old: LegacyConfig) -> Iterator[NewEntry]:
    yield old.entry("data.source", "hub", _DATASET)
    yield old.entry("data.dataset", str(old[_DATASET]), _DATASET)
    length = min(_ROW_TOKENS, old.number("model.max_seq_len"))
    yield old.entry("data.sequence_length", length, why="rows of 2,049 tokens, cut to model.max_seq_len")
    micro_batch = max(1, old.number(_BATCH) // (_ranks(old) * old.number(_ACCUMULATION)))
    yield old.entry("training.global_batch_size", old[_BATCH], _BATCH)
    yield old.entry("training.micro_batch_size", micro_batch, _BATCH, _ACCUMULATION, *_DEVICES, _NODES)


def _ranks(old: LegacyConfig) -> int:
    return old.number(_NODES) * old.number(*_DEVICES)


def _tasks(old: LegacyConfig) -> Iterator[NewEntry]:
    if old.name == "pico-train":
        yield old.entry("smlmt.hybrid_ratio", 0.0, why="pico-train has no tasks")
        yield old.entry("evaluation.n_tasks", 0, why="pico-train has no tasks")
        return
    if not any(key.startswith("smlmt") for key in old.leaves):
        yield old.entry("smlmt.hybrid_ratio", 1.0, why="in the first pico-maml all steps are meta steps")
        return
    ratio_keys = ("smlmt.hybrid_ratio", "smlmt.probability")
    hybrid_ratio = old.first(*ratio_keys) if old["smlmt.enabled"] else 0.0
    yield old.entry("smlmt.hybrid_ratio", hybrid_ratio, "smlmt.enabled", *ratio_keys)
    if old["smlmt.learn_inner_lr"]:
        yield old.entry("meta.learner", "meta_sgd", "smlmt.learn_inner_lr")
    for key, value in _RECIPE.items():
        yield old.entry(key, value, why="hard-coded in pico-maml")
    # pico-maml adapts only the head
    yield old.entry("meta.head_inner_lr", old["smlmt.inner_lr"], "smlmt.inner_lr")
    tasks_per_step = _ranks(old) * old.number(_ACCUMULATION)
    yield old.entry("meta.tasks_per_step", tasks_per_step, why="one task per micro-batch and device")
    if "smlmt.max_length" in old.leaves:
        context_tokens = min(old.number("smlmt.max_length"), old.number("model.max_seq_len") - 1)
        yield old.entry("smlmt.context", "sentence", "smlmt.max_length")
        yield old.entry("smlmt.context_tokens", context_tokens, "smlmt.max_length")
    hidden_dims = old["smlmt.hidden_dims"]
    if hidden_dims is not None:
        if not isinstance(hidden_dims, list) or len({*map(str, hidden_dims)}) != 1:
            raise ConfigError(f"smlmt.hidden_dims: got {hidden_dims!r}; in pico_ds all hidden layers have one width")
        yield old.entry("meta.vocab_head_layers", len(hidden_dims) + 1, "smlmt.hidden_dims")
        yield old.entry("meta.vocab_head_width", hidden_dims[0], "smlmt.hidden_dims")


def _checkpointing(old: LegacyConfig) -> Iterator[NewEntry]:
    names = ("checkpointing.hf_checkpoint.repo_id", "checkpointing.save_checkpoint_repo_id")
    push_key = "checkpointing.save_to_hf"
    repository = next((old.leaves[name] for name in names if old.leaves.get(name)), None)
    # the first version of pico-maml pushed whenever a repository was set
    pushes_by_default = names[1] in old.leaves and push_key not in old.leaves
    if repository is not None and (old[push_key] or pushes_by_default):
        yield old.entry("checkpointing.hub.repo_id", repository, push_key, *names)
        run_name = old["checkpointing.run_name"]
        if run_name is not None:
            yield old.entry("checkpointing.hub.revision", run_name, why="the branch that the run pushed to")
    # the first key takes precedence, because pico-train ignored the second, although it is set more often
    resume_keys = [
        key for key in ("checkpointing.training.auto_resume", "checkpointing.auto_resume") if key in old.leaves
    ]
    if resume_keys:
        yield old.entry("checkpointing.resume", "auto" if old.leaves[resume_keys[0]] else "never", resume_keys[0])
    suffixes_key = "checkpointing.learning_dynamics.layer_suffixes"
    if old[suffixes_key]:
        yield old.entry(
            "learning_dynamics.layer_suffixes",
            [_LAYER_SUFFIXES.get(name, name) for name in old[suffixes_key]],
            suffixes_key,
        )
        yield old.entry("learning_dynamics.save_every_n_steps", old[_SAVING], _SAVING, why="with every checkpoint")


def _evaluation(old: LegacyConfig) -> Iterator[NewEntry]:
    metrics = old["evaluation.metrics"] or []
    if metrics:
        yield old.entry("evaluation.every_n_steps", old[_SAVING], _SAVING, why="with every checkpoint")
    if "paloma" in metrics:
        for key, to in (("dataset_name", "data"), ("dataset_split", "split"), ("max_length", "max_length")):
            source = f"evaluation.paloma.{key}"
            if old[source] is not None:
                yield old.entry(f"evaluation.perplexity.{to}", old[source], source, "evaluation.metrics")


def _notes(old: LegacyConfig, entries: list[NewEntry]) -> Iterator[str]:
    """Yield a note for each old key that no new key uses, and other remarks."""
    used = {source for entry in entries for source in entry.sources}
    values = {entry.key: entry.value for entry in entries}
    for key, value in old.leaves.items():
        if key in used:
            continue
        entry_of = moved(key)
        if entry_of is not None:
            yield f"{key}: {value!r} is left out: {entry_of.advice}"
        elif key in KEPT_KEYS:
            yield f"{key}: {value!r} is left out: it is empty, or another key sets the value"
        else:
            yield f"{key}: {value!r} is left out: it is not a known key of pico-train or pico-maml"
    rows, micro_batches = old.number(_BATCH), _ranks(old) * old.number(_ACCUMULATION)
    if rows % micro_batches:
        yield (
            f"training.global_batch_size: {old.name} rounded down to whole micro-batches and used "
            f"{rows // micro_batches * micro_batches} rows; pico_ds uses {rows}"
        )
    if "checkpointing.hub.repo_id" in values:
        yield "checkpointing.hub.private: a new repository is private; write false for a public one"
    if str(old["training.fabric.precision"]).startswith("16"):
        yield "training.precision: fp16 is not supported; bf16 is used, which needs no loss scaling"
    if "smlmt.readout" in values:
        yield (
            "smlmt.readout: mask is pico-maml's readout, which sees only the text before the word; fim sees the "
            "text on both sides, and is the readout with which models learn (docs/learners.md)"
        )


def _text(old: LegacyConfig, entries: list[NewEntry], notes: tuple[str, ...], name: str) -> str:
    lines = [f"# Converted from {PurePosixPath(name).name}, a configuration of {old.name}."]
    lines += [
        f"# Devices of the old run: torchrun --nnodes {old.number(_NODES)} --nproc_per_node {old.number(*_DEVICES)}"
    ]
    lines += [f"# - {' '.join(note.split())}" for note in notes]
    open_sections: tuple[str, ...] = ()
    for entry in entries:
        *sections, key = entry.key.split(".")
        shared = 0
        while shared < min(len(sections), len(open_sections)) and sections[shared] == open_sections[shared]:
            shared += 1
        if shared == 0:
            lines.append("")
        for depth in range(shared, len(sections)):
            lines.append(f"{'  ' * depth}{sections[depth]}:")
        open_sections = tuple(sections)
        lines.append(f"{'  ' * len(sections)}{key}: {_inline(entry.value)}  # {entry.comment}")
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
