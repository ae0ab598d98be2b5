"""What replaces each key of pico-train and pico-maml configurations.

Errors quote this table, `migrate` applies it, and docs/migrating.md shows it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pico_ds.errors import ConfigError


@dataclass(frozen=True)
class Moved:
    """What replaces a key of a predecessor."""

    #: advice for users who set the key
    advice: str
    #: our keys that depend on its value
    to: tuple[str, ...] = ()
    #: converts its value to that of the only key of `to`; None if `migrate` needs more than the value
    convert: Callable[[Any], Any] | None = None


def _same(value: Any) -> Any:
    return value


def _to(key: str, hint: str = "", convert: Callable[[Any], Any] = _same) -> Moved:
    return Moved(f"write {key}{hint}", (key,), convert)


def _of_the_vocab_head(key: str, convert: Callable[[Any], Any] = _same) -> Moved:
    return Moved(f"write meta.head: vocab and {key}", (key,), convert)


def _with(advice: str, *to: str) -> Moved:
    return Moved(advice, to)


def _gone(reason: str) -> Moved:
    return Moved(reason)


def _one_of(choices: dict[Any, Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if value not in choices:
            raise ConfigError(f"got {value!r}, which has no counterpart; allowed: {', '.join(map(str, choices))}")
        return choices[value]

    return convert


_PRECISIONS: dict[Any, str] = {name: "bf16" for name in ("bf16-mixed", "bf16-true", "bf16", "16-mixed", "16-true")}
_PRECISIONS |= {name: "fp32" for name in ("32-true", "32", 32, "fp32")}
_SCHEDULES = {"linear_with_warmup": "linear", "linear": "linear", "cosine": "cosine", "constant": "constant"}


def _most_occurrences(value: int) -> int:
    """Convert `smlmt.max_token_freq`, where a negative number means no limit."""
    return value if value >= 0 else 10**9


_DEVICES = _with(
    "set the devices in the launcher: `deepspeed --num_gpus N` or `torchrun --nproc_per_node N`",
    "training.micro_batch_size",
    "meta.tasks_per_step",
)
_RESUME = _to("checkpointing.resume", ": auto (or never, a step, a path)", _one_of({True: "auto", False: "never"}))
_REPOSITORY = _with("write checkpointing.hub.repo_id", "checkpointing.hub.repo_id")
_RATIO = _with("write smlmt.hybrid_ratio", "smlmt.hybrid_ratio")
_FABRIC_FILES = _gone("Lightning Fabric is not used; leave the key out")
_INNER_LR = "write meta.inner_lr (decoder) and meta.head_inner_lr (head)"

#: dotted key of a predecessor -> what replaces it. A key that ends in `.*` covers all other keys of its section.
MOVED_KEYS: dict[str, Moved] = {
    "training.fabric.num_nodes": _with(
        "set the nodes in the launcher: `torchrun --nnodes N` or a DeepSpeed hostfile", *_DEVICES.to
    ),
    "training.fabric.num_devices": _DEVICES,
    "training.fabric.devices": _DEVICES,
    "training.fabric.precision": _to("training.precision", ": bf16 (or fp32)", _one_of(_PRECISIONS)),
    "training.fabric.accelerator": _gone("the accelerator is detected; leave the key out"),
    "training.fabric.*": _gone(
        "Lightning Fabric is not used; DeepSpeed's settings are in the file given by --deepspeed_config"
    ),
    "training.optimization.lr": _to("training.lr"),
    "training.optimization.optimizer": _gone("the optimizer is AdamW; leave the key out"),
    "training.optimization.lr_scheduler": _to(
        "training.lr_schedule", ": linear (or cosine, constant)", _one_of(_SCHEDULES)
    ),
    "training.optimization.lr_warmup_steps": _to("training.lr_warmup_steps"),
    "training.optimization.gradient_accumulation_steps": _with(
        "leave it out: it follows from training.global_batch_size and training.micro_batch_size", *_DEVICES.to
    ),
    "training.optimization.gradient_checkpointing": _to(
        "training.activation_checkpointing", ": block", _one_of({True: "block", False: "none"})
    ),
    "training.optimization.*": _gone("write these keys directly under training"),
    "training.inner_learning_rate": _to("meta.inner_lr"),
    "training.num_inner_steps": _to("meta.inner_steps"),
    "training.meta_batch_size": _to("meta.tasks_per_step", " (number of tasks over all ranks)"),
    "training.num_tasks": _gone("leave it out: every step samples new tasks"),
    "checkpointing.auto_resume": _RESUME,
    "checkpointing.training.auto_resume": _RESUME,
    "checkpointing.training.*": _gone("leave it out: optimizer and weights are saved together"),
    "checkpointing.save_to_hf": _with(
        "every checkpoint is in HF format; write checkpointing.hub.repo_id to push them", "checkpointing.hub.repo_id"
    ),
    "checkpointing.save_checkpoint_repo_id": _REPOSITORY,
    "checkpointing.hf_collection_slug": _gone("leave it out: add the repository to the collection on the hub"),
    "checkpointing.hf_checkpoint.repo_id": _REPOSITORY,
    "checkpointing.hf_checkpoint.collection_slug": _gone(
        "leave it out: add the repository to the collection on the hub"
    ),
    "checkpointing.hf_checkpoint.*": _gone("write checkpointing.hub.repo_id"),
    "checkpointing.checkpoints_dir": _gone("leave it out: checkpoints are in <runs_dir>/<run_name>/checkpoints"),
    "checkpointing.logs_dir": _gone("leave it out: logs are in <runs_dir>/<run_name>/logs"),
    "checkpointing.fabric_checkpoint_dir": _FABRIC_FILES,
    "checkpointing.fabric_checkpoint_filename": _FABRIC_FILES,
    "checkpointing.learning_dynamics_dir": _gone("the directory is fixed; leave the key out"),
    "checkpointing.learning_dynamics.layer_suffixes": _with(
        "write learning_dynamics.layer_suffixes; learning_dynamics.save_every_n_steps: null takes no snapshots",
        "learning_dynamics.layer_suffixes",
        "learning_dynamics.save_every_n_steps",
    ),
    "checkpointing.learning_dynamics.sequence_idx": _to("learning_dynamics.sequence_idx"),
    "checkpointing.learning_dynamics.batch_size": _to("learning_dynamics.n_rows"),
    "checkpointing.learning_dynamics.eval_data": _gone("leave it out: rows of the validation set are used"),
    "checkpointing.learning_dynamics.*": _gone("write these keys under learning_dynamics, a section at the top level"),
    "checkpointing.evaluation.load_checkpoint_path": _gone("run scripts/evaluate.py on the checkpoint"),
    "checkpointing.evaluation.*": _gone("leave it out: evaluation results are in <runs_dir>/<run_name>/eval_results"),
    "data.dataset.name": _with("write data.source: hub and data.dataset", "data.source", "data.dataset"),
    "data.dataset.*": _gone("write data.source: hub and data.dataset"),
    "data.dataloader.batch_size": _with(
        "write training.global_batch_size (number of rows over all ranks)",
        "training.global_batch_size",
        "training.micro_batch_size",
    ),
    "data.dataloader.*": _gone("write training.global_batch_size and training.micro_batch_size"),
    "data.tokenizer.name": _to("data.tokenizer", ": <directory or hub id>"),
    "data.tokenizer.vocab_size": _with("write model.vocab_size", "model.vocab_size"),
    "model.model_type": _gone("the only model is the Pico decoder; leave the key out"),
    "model.batch_size": _gone(
        "leave it out: training.global_batch_size and training.micro_batch_size set the number of rows"
    ),
    "smlmt.enabled": _with("write smlmt.hybrid_ratio (0 disables tasks)", "smlmt.hybrid_ratio"),
    "smlmt.probability": _RATIO,
    "smlmt.num_classes": _to("smlmt.n_way"),
    "smlmt.support_per_class": _to("smlmt.k_shot"),
    "smlmt.query_per_class": _to("smlmt.q_query"),
    "smlmt.support_size": _to("smlmt.k_shot"),
    "smlmt.sentences": _gone("write the sentences into a file, and its path in smlmt.inject.path"),
    "smlmt.vocabulary": _gone(
        "smlmt.min_word_freq and max_word_freq select the words, or the file of smlmt.inject.path names them"
    ),
    "smlmt.smlmt_weight": _gone("leave it out: smlmt.hybrid_ratio sets the share of meta steps"),
    "smlmt.learn_inner_lr": _with("write meta.learner: meta_sgd", "meta.learner"),
    "smlmt.inner_lr": _with(_INNER_LR, "meta.inner_lr", "meta.head_inner_lr"),
    "smlmt.inner_steps": _to("meta.inner_steps"),
    "smlmt.min_token_freq": _to("smlmt.min_word_freq"),
    "smlmt.max_token_freq": _to("smlmt.max_word_freq", convert=_most_occurrences),
    "smlmt.max_length": _with("write smlmt.context_tokens", "smlmt.context_tokens", "smlmt.context"),
    "smlmt.classifier_head.num_layers": _of_the_vocab_head("meta.vocab_head_layers"),
    "smlmt.classifier_head.hidden_dim": _of_the_vocab_head("meta.vocab_head_width"),
    "smlmt.classifier_head.dropout": _of_the_vocab_head("meta.vocab_head_dropout", float),
    "smlmt.classifier_head.init_method": _gone("the vocab head always has Xavier initialisation; leave the key out"),
    "smlmt.classifier_head.*": _gone("write meta.head: vocab (or prototype, linear, generated)"),
    "smlmt.hidden_dims": _with(
        "write meta.head: vocab, meta.vocab_head_layers and meta.vocab_head_width",
        "meta.vocab_head_layers",
        "meta.vocab_head_width",
    ),
    "smlmt.dropout": _of_the_vocab_head("meta.vocab_head_dropout", float),
    "smlmt.weight_decay": _gone("write training.weight_decay, which applies to the decoder too"),
    "evaluation.metrics": _with(
        "see evaluation.n_rows (validation loss), n_tasks (few-shot accuracy) and perplexity.data",
        "evaluation.every_n_steps",
        "evaluation.perplexity.data",
    ),
    "evaluation.paloma.dataset_name": _with("write evaluation.perplexity.data", "evaluation.perplexity.data"),
    "evaluation.paloma.dataset_split": _with("write evaluation.perplexity.split", "evaluation.perplexity.split"),
    "evaluation.paloma.max_length": _with("write evaluation.perplexity.max_length", "evaluation.perplexity.max_length"),
    "evaluation.paloma.*": _gone(
        "write evaluation.perplexity.data: pico-lm/pretokenized-paloma-tinsy; the batch is training.micro_batch_size"
    ),
    "evaluation.universal_ner.*": _gone("run scripts/evaluate.py few-shot RUN --ner FILE"),
    "monitoring.logging.log_level": _gone("leave the key out"),
    "monitoring.logging.log_every_n_steps": _to("monitoring.log_every_n_steps"),
    "monitoring.save_to_wandb": _to(
        "monitoring.wandb.mode",
        ": auto (or online, offline, disabled)",
        _one_of({True: "auto", False: "disabled"}),
    ),
    "monitoring.save_to_picolabs": _gone(
        "leave it out: nothing is reported to Pico Labs; logs/metrics.jsonl has all metrics"
    ),
    "monitoring.pico_report.*": _gone(
        "leave it out: nothing is reported to Pico Labs; logs/metrics.jsonl has all metrics"
    ),
    "monitoring.experiment_tracker.framework": _to(
        "monitoring.wandb.mode", ": auto (or online, offline, disabled)", _one_of({"wandb": "auto", "": "disabled"})
    ),
    "monitoring.experiment_tracker.wandb_project": _to("monitoring.wandb.project"),
    "monitoring.experiment_tracker.wandb_entity": _to("monitoring.wandb.entity"),
}

#: keys of both predecessors, or of pico-maml, whose name and meaning are unchanged
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
    """Return what replaces a predecessor's key, or None if no predecessor has the key.

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
    """Return the advice for a predecessor's key, or None if no predecessor has the key."""
    found = moved(dotted_key)
    return None if found is None else found.advice


def table_of_keys() -> str:
    """Return a Markdown table of all keys of the predecessors and what replaces each."""
    rows = [f"| `{key}` | unchanged |" for key in KEPT_KEYS]
    # Markdown would read <...> as HTML
    rows += [f"| `{key}` | {entry.advice.replace('<', chr(92) + '<')} |" for key, entry in MOVED_KEYS.items()]
    return "\n".join(["| key of pico-train or pico-maml | here |", "|---|---|", *sorted(rows)]) + "\n"
