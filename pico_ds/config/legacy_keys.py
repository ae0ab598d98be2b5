"""Replacements of the configuration keys of pico-train and pico-maml.

Errors quote this table, `migrate` applies it, and docs/migrating.md shows it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pico_ds.errors import ConfigError


@dataclass(frozen=True)
class Moved:
    """Replacement of a key of pico-train or pico-maml."""

    #: advice for users who set the key
    advice: str
    #: keys of pico_ds that depend on the value of the old key
    to: tuple[str, ...] = ()
    #: converts the old value to the value of the only key in `to`; None if `migrate` also needs other keys
    convert: Callable[[Any], Any] | None = None


def _unchanged(value: Any) -> Any:
    return value


def _renamed(key: str, hint: str = "", convert: Callable[[Any], Any] = _unchanged) -> Moved:
    return Moved(f"write {key}{hint}", (key,), convert)


def _vocab_head_key(key: str, convert: Callable[[Any], Any] = _unchanged) -> Moved:
    return Moved(f"write meta.head: vocab and {key}", (key,), convert)


def _replaced(advice: str, *to: str) -> Moved:
    return Moved(advice, to)


def _removed(reason: str) -> Moved:
    return Moved(reason)


def _translated(choices: dict[Any, Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if value not in choices:
            raise ConfigError(f"got {value!r}, which has no counterpart; allowed: {', '.join(map(str, choices))}")
        return choices[value]

    return convert


_PRECISIONS: dict[Any, str] = {name: "bf16" for name in ("bf16-mixed", "bf16-true", "bf16", "16-mixed", "16-true")}
_PRECISIONS |= {name: "fp32" for name in ("32-true", "32", 32, "fp32")}
_SCHEDULES = {"linear_with_warmup": "linear", "linear": "linear", "cosine": "cosine", "constant": "constant"}


def _max_occurrences(value: int) -> int:
    """Convert `smlmt.max_token_freq`, where a negative number means no limit."""
    return value if value >= 0 else 10**9


_DEVICES = _replaced(
    "set the devices in the launcher: `deepspeed --num_gpus N` or `torchrun --nproc_per_node N`",
    "training.micro_batch_size",
    "meta.tasks_per_step",
)
_RESUME = _renamed(
    "checkpointing.resume", ": auto (or never, a step, a path)", _translated({True: "auto", False: "never"})
)
_REPOSITORY = _replaced("write checkpointing.hub.repo_id", "checkpointing.hub.repo_id")
_HYBRID_RATIO = _replaced("write smlmt.hybrid_ratio", "smlmt.hybrid_ratio")
_FABRIC_FILES = _removed("Lightning Fabric is not used; leave the key out")
_INNER_LR = "write meta.inner_lr (decoder) and meta.head_inner_lr (head)"

#: dotted key of pico-train or pico-maml -> replacement. A key that ends in `.*` covers all other keys of its section.
MOVED_KEYS: dict[str, Moved] = {
    "training.fabric.num_nodes": _replaced(
        "set the nodes in the launcher: `torchrun --nnodes N` or a DeepSpeed hostfile", *_DEVICES.to
    ),
    "training.fabric.num_devices": _DEVICES,
    "training.fabric.devices": _DEVICES,
    "training.fabric.precision": _renamed("training.precision", ": bf16 (or fp32)", _translated(_PRECISIONS)),
    "training.fabric.accelerator": _removed("the accelerator is detected; leave the key out"),
    "training.fabric.*": _removed(
        "Lightning Fabric is not used; DeepSpeed's settings are in the file given by --deepspeed_config"
    ),
    "training.optimization.lr": _renamed("training.lr"),
    "training.optimization.optimizer": _removed("the optimizer is AdamW; leave the key out"),
    "training.optimization.lr_scheduler": _renamed(
        "training.lr_schedule", ": linear (or cosine, constant)", _translated(_SCHEDULES)
    ),
    "training.optimization.lr_warmup_steps": _renamed("training.lr_warmup_steps"),
    "training.optimization.gradient_accumulation_steps": _replaced(
        "leave it out: it follows from training.global_batch_size and training.micro_batch_size", *_DEVICES.to
    ),
    "training.optimization.gradient_checkpointing": _renamed(
        "training.activation_checkpointing", ": block", _translated({True: "block", False: "none"})
    ),
    "training.optimization.*": _removed("write these keys directly under training"),
    "training.inner_learning_rate": _renamed("meta.inner_lr"),
    "training.num_inner_steps": _renamed("meta.inner_steps"),
    "training.meta_batch_size": _renamed("meta.tasks_per_step", " (number of tasks over all ranks)"),
    "training.num_tasks": _removed("leave it out: every step samples new tasks"),
    "checkpointing.auto_resume": _RESUME,
    "checkpointing.training.auto_resume": _RESUME,
    "checkpointing.training.*": _removed("leave it out: optimizer and weights are saved together"),
    "checkpointing.save_to_hf": _replaced(
        "every checkpoint is in HF format; write checkpointing.hub.repo_id to push them", "checkpointing.hub.repo_id"
    ),
    "checkpointing.save_checkpoint_repo_id": _REPOSITORY,
    "checkpointing.hf_collection_slug": _removed("leave it out: add the repository to the collection on the hub"),
    "checkpointing.hf_checkpoint.repo_id": _REPOSITORY,
    "checkpointing.hf_checkpoint.collection_slug": _removed(
        "leave it out: add the repository to the collection on the hub"
    ),
    "checkpointing.hf_checkpoint.*": _removed("write checkpointing.hub.repo_id"),
    "checkpointing.checkpoints_dir": _removed("leave it out: checkpoints are in <runs_dir>/<run_name>/checkpoints"),
    "checkpointing.logs_dir": _removed("leave it out: logs are in <runs_dir>/<run_name>/logs"),
    "checkpointing.fabric_checkpoint_dir": _FABRIC_FILES,
    "checkpointing.fabric_checkpoint_filename": _FABRIC_FILES,
    "checkpointing.learning_dynamics_dir": _removed("the directory is fixed; leave the key out"),
    "checkpointing.learning_dynamics.layer_suffixes": _replaced(
        "write learning_dynamics.layer_suffixes; learning_dynamics.save_every_n_steps: null takes no snapshots",
        "learning_dynamics.layer_suffixes",
        "learning_dynamics.save_every_n_steps",
    ),
    "checkpointing.learning_dynamics.sequence_idx": _renamed("learning_dynamics.sequence_idx"),
    "checkpointing.learning_dynamics.batch_size": _renamed("learning_dynamics.n_rows"),
    "checkpointing.learning_dynamics.eval_data": _removed("leave it out: rows of the validation set are used"),
    "checkpointing.learning_dynamics.*": _removed(
        "write these keys under learning_dynamics, a section at the top level"
    ),
    "checkpointing.evaluation.load_checkpoint_path": _removed("run scripts/evaluate.py on the checkpoint"),
    "checkpointing.evaluation.*": _removed(
        "leave it out: evaluation results are in <runs_dir>/<run_name>/eval_results"
    ),
    "data.dataset.name": _replaced("write data.source: hub and data.dataset", "data.source", "data.dataset"),
    "data.dataset.*": _removed("write data.source: hub and data.dataset"),
    "data.dataloader.batch_size": _replaced(
        "write training.global_batch_size (number of rows over all ranks)",
        "training.global_batch_size",
        "training.micro_batch_size",
    ),
    "data.dataloader.*": _removed("write training.global_batch_size and training.micro_batch_size"),
    "data.tokenizer.name": _renamed("data.tokenizer", ": <directory or hub id>"),
    "data.tokenizer.vocab_size": _replaced("write model.vocab_size", "model.vocab_size"),
    "model.model_type": _removed("the only model is the Pico decoder; leave the key out"),
    "model.batch_size": _removed(
        "leave it out: training.global_batch_size and training.micro_batch_size set the number of rows"
    ),
    "smlmt.enabled": _replaced("write smlmt.hybrid_ratio (0 disables tasks)", "smlmt.hybrid_ratio"),
    "smlmt.probability": _HYBRID_RATIO,
    "smlmt.num_classes": _renamed("smlmt.n_way"),
    "smlmt.support_per_class": _renamed("smlmt.k_shot"),
    "smlmt.query_per_class": _renamed("smlmt.q_query"),
    "smlmt.support_size": _renamed("smlmt.k_shot"),
    "smlmt.sentences": _removed("write the sentences into a file, and its path in smlmt.inject.path"),
    "smlmt.vocabulary": _removed(
        "smlmt.min_word_freq and max_word_freq select the words, or the file of smlmt.inject.path names them"
    ),
    "smlmt.smlmt_weight": _removed("leave it out: smlmt.hybrid_ratio sets the share of meta steps"),
    "smlmt.learn_inner_lr": _replaced("write meta.learner: meta_sgd", "meta.learner"),
    "smlmt.inner_lr": _replaced(_INNER_LR, "meta.inner_lr", "meta.head_inner_lr"),
    "smlmt.inner_steps": _renamed("meta.inner_steps"),
    "smlmt.min_token_freq": _renamed("smlmt.min_word_freq"),
    "smlmt.max_token_freq": _renamed("smlmt.max_word_freq", convert=_max_occurrences),
    "smlmt.max_length": _replaced("write smlmt.context_tokens", "smlmt.context_tokens", "smlmt.context"),
    "smlmt.classifier_head.num_layers": _vocab_head_key("meta.vocab_head_layers"),
    "smlmt.classifier_head.hidden_dim": _vocab_head_key("meta.vocab_head_width"),
    "smlmt.classifier_head.dropout": _vocab_head_key("meta.vocab_head_dropout", float),
    "smlmt.classifier_head.init_method": _removed("the vocab head always has Xavier initialisation; leave the key out"),
    "smlmt.classifier_head.*": _removed("write meta.head: vocab (or prototype, linear, generated)"),
    "smlmt.hidden_dims": _replaced(
        "write meta.head: vocab, meta.vocab_head_layers and meta.vocab_head_width",
        "meta.vocab_head_layers",
        "meta.vocab_head_width",
    ),
    "smlmt.dropout": _vocab_head_key("meta.vocab_head_dropout", float),
    "smlmt.weight_decay": _removed("write training.weight_decay, which applies to the decoder too"),
    "evaluation.metrics": _replaced(
        "see evaluation.n_rows (validation loss), n_tasks (few-shot accuracy) and perplexity.data",
        "evaluation.every_n_steps",
        "evaluation.perplexity.data",
    ),
    "evaluation.paloma.dataset_name": _replaced("write evaluation.perplexity.data", "evaluation.perplexity.data"),
    "evaluation.paloma.dataset_split": _replaced("write evaluation.perplexity.split", "evaluation.perplexity.split"),
    "evaluation.paloma.max_length": _replaced(
        "write evaluation.perplexity.max_length", "evaluation.perplexity.max_length"
    ),
    "evaluation.paloma.*": _removed(
        "write evaluation.perplexity.data: pico-lm/pretokenized-paloma-tinsy; the batch is training.micro_batch_size"
    ),
    "evaluation.universal_ner.*": _removed("run scripts/evaluate.py few-shot RUN --ner FILE"),
    "monitoring.logging.log_level": _removed("leave the key out"),
    "monitoring.logging.log_every_n_steps": _renamed("monitoring.log_every_n_steps"),
    "monitoring.save_to_wandb": _renamed(
        "monitoring.wandb.mode",
        ": auto (or online, offline, disabled)",
        _translated({True: "auto", False: "disabled"}),
    ),
    "monitoring.save_to_picolabs": _removed(
        "leave it out: nothing is reported to Pico Labs; logs/metrics.jsonl has all metrics"
    ),
    "monitoring.pico_report.*": _removed(
        "leave it out: nothing is reported to Pico Labs; logs/metrics.jsonl has all metrics"
    ),
    "monitoring.experiment_tracker.framework": _renamed(
        "monitoring.wandb.mode", ": auto (or online, offline, disabled)", _translated({"wandb": "auto", "": "disabled"})
    ),
    "monitoring.experiment_tracker.wandb_project": _renamed("monitoring.wandb.project"),
    "monitoring.experiment_tracker.wandb_entity": _renamed("monitoring.wandb.entity"),
}

#: keys of pico-train and pico-maml, or only of pico-maml, whose name and meaning are unchanged
KEPT_KEYS: tuple[str, ...] = (
    "model.d_model",
    "model.n_layers",
    "model.vocab_size",
    "model.max_seq_len",
    "model.attention_n_heads",
    "model.attention_n_kv_heads",
    "model.activation_hidden_dim",
    "model.norm_eps",
    "model.position_emb_theta",
    "smlmt.n_way",
    "smlmt.k_shot",
    "smlmt.hybrid_ratio",
    "training.max_steps",
    "checkpointing.run_name",
    "checkpointing.runs_dir",
    "checkpointing.save_every_n_steps",
    "monitoring.wandb.project",
    "monitoring.wandb.entity",
)


def moved(dotted_key: str) -> Moved | None:
    """Return the replacement of a key of pico-train or pico-maml, or None if neither has the key.

    A section such as `training.fabric` returns the entry that covers all its keys.
    """
    if dotted_key in MOVED_KEYS:
        return MOVED_KEYS[dotted_key]
    parts = dotted_key.split(".")
    for depth in range(len(parts), 0, -1):
        found = MOVED_KEYS.get(".".join(parts[:depth]) + ".*")
        if found is not None:
            return found
    return None


def advice_for(dotted_key: str) -> str | None:
    """Return the advice for a key of pico-train or pico-maml, or None if neither has the key."""
    found = moved(dotted_key)
    return None if found is None else found.advice


def table_of_keys() -> str:
    """Return a Markdown table of all keys of pico-train and pico-maml with their replacements."""
    rows = [f"| `{key}` | unchanged |" for key in KEPT_KEYS]
    # Markdown would read <...> as HTML
    rows += [f"| `{key}` | {entry.advice.replace('<', chr(92) + '<')} |" for key, entry in MOVED_KEYS.items()]
    return "\n".join(["| key of pico-train or pico-maml | in pico_ds |", "|---|---|", *sorted(rows)]) + "\n"
