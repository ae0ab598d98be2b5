"""Builds the callbacks of a run, in the order in which the trainer calls them."""

from pathlib import Path

import torch

from pico_ds.checkpoint.background_saver import CheckpointSaver, Published
from pico_ds.checkpoint.checkpoint_index import Index
from pico_ds.checkpoint.huggingface_export import export_weights
from pico_ds.checkpoint.sharded_state_reader import StateReader
from pico_ds.meta.functional_model import Parameters
from pico_ds.meta.starting_model import initial_parameters
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.monitoring.run_log import logger
from pico_ds.monitoring.trackers import Tracker
from pico_ds.runs.resume import ResumePoint
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.callbacks.checkpointing import Checkpointing
from pico_ds.training.callbacks.data_position import DataCursor
from pico_ds.training.callbacks.evaluation import Evaluation
from pico_ds.training.callbacks.heartbeat import Heartbeat
from pico_ds.training.callbacks.hub_uploads import HubPushes
from pico_ds.training.callbacks.metrics_logging import FirstStepClock, MetricsLog
from pico_ds.training.callbacks.profiler import Profile
from pico_ds.training.callbacks.progress_bar import ProgressBar
from pico_ds.training.run_components import RunComponents
from pico_ds.training.run_context import RunContext


def build_callbacks(
    context: RunContext, resume_point: ResumePoint | None, trackers: list[Tracker]
) -> tuple[list[Callback], Evaluation]:
    """Return all callbacks of a run, and the `Evaluation` among them, which holds the evaluation results."""
    config, process, run = context.config, context.process, context.run
    evaluation = Evaluation(
        context.components.evaluator, lambda: _initial_parameters_fp32(context), run, trackers, context.should_continue
    )
    uploads: list[HubPushes] = []
    if config.checkpointing.hub.repo_id is not None:
        uploads = [
            HubPushes(context.repository, config, run, context.store, evaluation.results, context.should_continue)
        ]
    rank_0_callbacks: list[Callback] = []
    if process.is_main:
        rank_0_callbacks = [FirstStepClock(context.started), ProgressBar(context.console)]
    callbacks = [
        *rank_0_callbacks,
        # before checkpointing, which saves the data position
        DataCursor(context.components.rows),
        *([MetricsLog(trackers, config.monitoring.log_every_n_steps)] if process.is_main else []),
        _checkpointing(context, resume_point, trackers, uploads),
        evaluation,
        *_snapshots(context),
        *uploads,
        *([Profile(config.monitoring.profile_steps, run.logs)] if config.monitoring.profile_steps else []),
        Heartbeat(context.watchdog),
    ]
    return callbacks, evaluation


def _checkpointing(
    context: RunContext, resume_point: ResumePoint | None, trackers: list[Tracker], uploads: list[HubPushes]
) -> Checkpointing:
    """Return the callback that saves checkpoints. It never removes the checkpoint that training resumed from."""
    last = None
    if resume_point is not None and resume_point.checkpoint.parent.resolve() == context.store.directory.resolve():
        last = resume_point.index
    return Checkpointing(
        _build_saver(context, last, trackers, uploads),
        context.signals,
        context.store.next_save_number() if context.process.is_main else 0,
        last,
        lambda: context.optimizer_state.steps,
        {"corpus": context.corpus_identity, "environment": context.environment},
    )


def _build_saver(
    context: RunContext, last: Index | None, trackers: list[Tracker], uploads: list[HubPushes]
) -> CheckpointSaver:
    protected = set() if last is None else {last.save_number}

    def complete(directory: Path, reader: StateReader) -> None:
        for tracker in trackers:
            tracker.sync()
        _export_weights(context.components, reader, directory)

    def published(save: Published) -> None:
        logger.info("saved %s in %.1f s; training paused for %.3f s", save.path, save.seconds, save.stall_seconds)
        in_flight: set[int] = set()
        for upload in uploads:
            upload.push_checkpoint(save.index, save.path)
            in_flight |= upload.in_flight
        try:
            context.store.retain(save.index, context.config.checkpointing, context.start_id, protected | in_flight)
        except OSError as error:
            logger.warning("warning: cannot remove an old checkpoint: %s", error)

    return CheckpointSaver(
        context.store,
        context.optimizer_state,
        context.process,
        context.start_id,
        complete,
        published,
        context.watchdog.beat,
    )


def _export_weights(components: RunComponents, reader: StateReader, directory: Path) -> None:
    config, tokenizer = components.config, components.corpus.tokenizer
    export_weights(
        reader,
        directory,
        shape=config.model,
        vocab_size=components.vocab_size,
        dtype=COMPUTE_DTYPE[config.training.precision],
        special_token_ids={
            "bos_token_id": tokenizer.end_of_text_id,
            "eos_token_id": tokenizer.end_of_text_id,
            "pad_token_id": tokenizer.pad_id,
        },
        tokenizer_directory=components.corpus.tokenizer_directory,
    )


def _snapshots(context: RunContext) -> list[Callback]:
    """Return a list with the snapshot callback; empty if snapshots are disabled. A collective."""
    if context.config.learning_dynamics.save_every_n_steps is None:
        return []
    # importing `datasets` takes a second, so import it only if snapshots are enabled
    from pico_ds.training.callbacks.snapshots import build_snapshots

    components, process = context.components, context.process
    return [build_snapshots(components, context.store, context.start_id, process, context.watchdog.beat)]


def _initial_parameters_fp32(context: RunContext) -> Parameters:
    weights = initial_parameters(context.config, context.process.device)
    return {name: weight.to(torch.float32) for name, weight in weights.items()}
