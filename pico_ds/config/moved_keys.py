"""Where the keys of pico-train and pico-maml configurations went."""

_DEVICES = "devices are the launcher's: `deepspeed --num_gpus N` or `torchrun --nproc_per_node N`"

#: dotted key of a predecessor -> what to do instead. A key that ends in `.*` stands for everything under it.
MOVED_KEYS: dict[str, str] = {
    "training.fabric.num_nodes": "nodes are the launcher's: `torchrun --nnodes N` or a DeepSpeed hostfile",
    "training.fabric.num_devices": _DEVICES,
    "training.fabric.devices": _DEVICES,
    "training.fabric.precision": "write training.precision: bf16 (or fp32)",
    "training.fabric.accelerator": "the accelerator is detected; leave the key out",
    "training.fabric.*": "Lightning Fabric is gone; DeepSpeed's settings are in the file given by --deepspeed_config",
    "training.optimization.lr": "write training.lr",
    "training.optimization.optimizer": "the optimizer is AdamW; leave the key out",
    "training.optimization.lr_scheduler": "write training.lr_schedule: linear (cosine, constant)",
    "training.optimization.lr_warmup_steps": "write training.lr_warmup_steps",
    "training.optimization.gradient_accumulation_steps": "global_batch_size and micro_batch_size of training imply it",
    "training.optimization.*": "these keys stand directly under training",
    "checkpointing.auto_resume": "write checkpointing.resume: auto (never, a step, a path)",
    "checkpointing.training.auto_resume": "write checkpointing.resume: auto (never, a step, a path)",
    "checkpointing.training.*": "leave it out: optimizer and weights are saved together",
    "checkpointing.save_to_hf": "every save is in HF format; leave the key out",
    "checkpointing.save_checkpoint_repo_id": "write checkpointing.hub.repo_id",
    "checkpointing.hf_collection_slug": "leave it out: add the repository to the collection on the hub",
    "checkpointing.hf_checkpoint.repo_id": "write checkpointing.hub.repo_id",
    "checkpointing.hf_checkpoint.*": "write checkpointing.hub.repo_id",
    "checkpointing.checkpoints_dir": "checkpoints are kept in <runs_dir>/<run_name>/checkpoints",
    "checkpointing.logs_dir": "logs are kept in <runs_dir>/<run_name>/logs",
    "checkpointing.fabric_checkpoint_dir": "Lightning Fabric is gone; leave the key out",
    "checkpointing.fabric_checkpoint_filename": "Lightning Fabric is gone; leave the key out",
    "checkpointing.learning_dynamics_dir": "the directory is fixed; leave the key out",
    "checkpointing.learning_dynamics.layer_suffixes": "write learning_dynamics.layer_suffixes",
    "checkpointing.learning_dynamics.*": "learning_dynamics is a section of its own",
    "checkpointing.evaluation.*": "evaluation results are kept in <runs_dir>/<run_name>/eval_results",
    "data.dataset.*": "write data.source and data.paths",
    "data.dataloader.batch_size": "write training.global_batch_size (rows over all ranks)",
    "data.dataloader.*": "write training.global_batch_size and training.micro_batch_size",
    "data.tokenizer.name": "write data.tokenizer: <directory or hub id>",
    "data.tokenizer.vocab_size": "write model.vocab_size",
    "model.model_type": "there is one model, the Pico decoder; leave the key out",
    "model.batch_size": "write training.micro_batch_size",
    "smlmt.enabled": "write smlmt.hybrid_ratio (0 turns the tasks off)",
    "smlmt.probability": "write smlmt.hybrid_ratio",
    "smlmt.num_classes": "write smlmt.n_way",
    "smlmt.support_per_class": "write smlmt.k_shot",
    "smlmt.query_per_class": "write smlmt.q_query",
    "smlmt.support_size": "write smlmt.k_shot",
    "smlmt.inner_lr": "write meta.inner_lr (decoder) and meta.head_inner_lr (head)",
    "smlmt.inner_steps": "write meta.inner_steps",
    "smlmt.min_token_freq": "write smlmt.min_word_freq",
    "smlmt.max_token_freq": "write smlmt.max_word_freq",
    "smlmt.max_length": "write smlmt.context_tokens",
    "smlmt.classifier_head.num_layers": "write meta.head: vocab and meta.vocab_head_layers",
    "smlmt.classifier_head.hidden_dim": "write meta.head: vocab and meta.vocab_head_width",
    "smlmt.classifier_head.dropout": "write meta.head: vocab and meta.vocab_head_dropout",
    "smlmt.classifier_head.init_method": "the vocab head's weights are Xavier's; leave the key out",
    "smlmt.classifier_head.*": "write meta.head: vocab (or prototype, linear, generated)",
    "smlmt.hidden_dims": "write meta.head: vocab, meta.vocab_head_layers and meta.vocab_head_width",
    "smlmt.dropout": "write meta.head: vocab and meta.vocab_head_dropout",
    "smlmt.weight_decay": "write training.weight_decay",
    "evaluation.metrics": "see evaluation.n_rows (validation loss), n_tasks (few-shot accuracy) and perplexity.data",
    "evaluation.paloma.dataset_name": "write evaluation.perplexity.data",
    "evaluation.paloma.dataset_split": "write evaluation.perplexity.split",
    "evaluation.paloma.max_length": "write evaluation.perplexity.max_length",
    "evaluation.paloma.*": "write evaluation.perplexity.data: pico-lm/pretokenized-paloma-tinsy",
    "monitoring.logging.log_level": "leave the key out",
    "monitoring.logging.log_every_n_steps": "write monitoring.log_every_n_steps",
    "monitoring.save_to_wandb": "write monitoring.wandb.mode: auto (online, offline, disabled)",
}


def advice_for(dotted_key: str) -> str | None:
    """What to do instead of a predecessor's key, or None where the key was never known.

    A section of a predecessor (`training.fabric`) gets the advice for everything under it.
    """
    if dotted_key in MOVED_KEYS:
        return MOVED_KEYS[dotted_key]
    parts = dotted_key.split(".")
    for depth in range(len(parts), 0, -1):
        advice = MOVED_KEYS.get(".".join(parts[:depth]) + ".*")
        if advice is not None:
            return advice
    return None
