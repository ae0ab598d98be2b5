"""Runs one training run, from its configuration to its final report."""

import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.command_line import INTERRUPTED_EXIT_CODE
from pico_ds.config import RunConfig, dump_config
from pico_ds.config.deepspeed_config import resolve_deepspeed_config
from pico_ds.config.validation import probable_mistakes
from pico_ds.engine.distributed import Process, is_lost_peer
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.optimizer_state import OptimizerState
from pico_ds.engine.zero_checks import check_zero_settings
from pico_ds.errors import PicoError, TrainingError, describe_os_error
from pico_ds.faults.failure_report import FailureReport
from pico_ds.faults.stop_signals import StopSignals
from pico_ds.faults.watchdog import Watchdog
from pico_ds.file_writing import replace_text
from pico_ds.meta.starting_model import initial_module
from pico_ds.monitoring.run_log import log_failure, log_to_file, logger, start_console
from pico_ds.monitoring.trackers import Tracker, build_trackers, check_trackers
from pico_ds.runs.metrics_file import rewind_metrics
from pico_ds.runs.resume import ResumePoint, Resumer, will_resume
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.runs.run_lock import lock_run_directory
from pico_ds.runs.run_status import RunStatus, State
from pico_ds.training.callback_setup import build_callbacks
from pico_ds.training.callbacks.hub_uploads import prepare_repository
from pico_ds.training.run_components import build_components
from pico_ds.training.run_context import RunContext
from pico_ds.training.run_summary import print_report
from pico_ds.training.train_step import TrainStep
from pico_ds.training.trainer import Trainer
from pico_ds.version import __version__


@dataclass(frozen=True)
class RunRequest:
    """The arguments of a training run.

    Attributes:
        config_name: file name of the configuration. It names the run if checkpointing.run_name is null.
        deepspeed_json: DeepSpeed settings, as returned by `load_deepspeed_config`.
        deepspeed_name: name of the DeepSpeed configuration, for messages.
        started: start time of the command [s since the epoch].
    """

    config: RunConfig
    config_name: str
    deepspeed_json: dict[str, Any]
    deepspeed_name: str
    started: float


@dataclass(frozen=True)
class RunOutcome:
    """The result of a training run.

    Attributes:
        directory: the run directory.
        exit_code: 0, or `checkpointing.requeue_exit_code` after a stop signal.
    """

    directory: Path
    exit_code: int


def run_training(request: RunRequest, process: Process, signals: StopSignals) -> RunOutcome:
    """Train as configured, from the beginning or from a checkpoint. Every rank must call this.

    Raises:
        ConfigError, DataError, TaskError: the run cannot start. Nothing was trained.
        CheckpointError: a checkpoint cannot be read or written.
        TrainingError: training cannot continue.
    """
    console = start_console(process.is_main)
    deepspeed_config = _check_request(request, process)
    logger.info("preparing the corpus (the first run on a corpus trains its tokenizer and caches its tokens)")
    components = build_components(request.config, process)
    config = components.config
    # a resumed run loads its weights from a checkpoint, and the model of `init_from` may no longer exist
    module = initial_module(config, with_source=not will_resume(config.checkpointing))
    n_parameters = sum(weight.numel() for weight in module.parameters())
    engine = MetaEngine(module, config.training, deepspeed_config, process)
    repository = None if config.checkpointing.hub.repo_id is None else prepare_repository(config, process)
    # after everything else that can fail, so that a failed start leaves no run directory
    lock = lock_run_directory(config.checkpointing, Path(request.config_name).stem, process)
    logger.info("%s: %s parameters, ZeRO stage %d", lock.run.path, f"{n_parameters:,}", engine.stage)
    environment = _environment(deepspeed_config, process)
    failures = FailureReport(lock.run, process, environment, process.from_main(int(request.started)))
    timeout = config.training.hang_timeout_seconds
    watchdog = Watchdog(timeout, process.rank, lock.run.logs, process.lost_ranks, failures.write_from_watchdog)
    try:
        with watchdog:
            context = RunContext(
                config_name=request.config_name,
                started=request.started,
                start_id=process.from_main(secrets.randbits(40)),
                components=components,
                engine=engine,
                optimizer_state=OptimizerState(engine),
                lock=lock,
                store=CheckpointStore(lock.run.checkpoints),
                environment=environment,
                repository=repository,
                watchdog=watchdog,
                signals=signals,
                console=console,
            )
            exit_code = _resume_and_train(context, failures)
            # to the other ranks, a rank that exits first looks like a rank that died
            process.wait_for_all()
    except KeyboardInterrupt:
        if not failures.has_begun:
            lock.discard_if_new()
        raise
    except Exception as error:
        # before the first step, a PicoError is a configuration or checkpoint error and is raised on all ranks
        if failures.has_begun or not isinstance(error, PicoError):
            failures.write(error, "lost_peer" if is_lost_peer(error.__cause__ or error) else "error")
        else:
            lock.discard_if_new()
        raise
    finally:
        lock.release()
    return RunOutcome(lock.run.path, exit_code)


def _check_request(request: RunRequest, process: Process) -> dict[str, Any]:
    """Log the settings and their warnings, and return the resolved DeepSpeed configuration.

    Raises:
        ConfigError: the configuration is invalid.
    """
    config = request.config
    logger.info(
        "pico_ds: config %s, %s, %d rank(s) on %s, %s",
        request.config_name,
        request.deepspeed_name,
        process.world_size,
        process.device.type,
        config.training.precision,
    )
    for warning in (*probable_mistakes(config), *_launcher_warnings(config)):
        logger.warning("warning: %s", warning)
    check_trackers(config)
    check_zero_settings(request.deepspeed_json["zero_optimization"], request.deepspeed_name)
    return resolve_deepspeed_config(request.deepspeed_json, config, process.world_size, request.deepspeed_name)


def _resume_and_train(context: RunContext, failures: FailureReport) -> int:
    """Resume if there is a checkpoint, train, and print the report. Return the exit code."""
    config, components = context.config, context.components
    resume_point = Resumer(
        config,
        context.corpus_identity,
        context.store,
        context.optimizer_state,
        context.process,
        context.lock.first_save_number,
        context.watchdog.beat,
    ).resume()
    trackers = _open_run_files(context, resume_point) if context.process.is_main else []
    callbacks, evaluation = build_callbacks(context, resume_point, trackers)
    train_step = TrainStep(
        config, components.network, components.learner, components.rows, components.tasks, context.process
    )
    trainer = Trainer(config, context.engine, train_step, callbacks)
    if resume_point is not None:
        trainer.load_progress(resume_point.index.progress, resume_point.index.callbacks)
    if trainer.state.step >= config.training.max_steps:
        logger.info("the run has already taken all %d steps; raise training.max_steps to continue", trainer.state.step)
    context.signals.install()
    failures.begin(lambda: trainer.state.step)
    started = time.monotonic()
    _train(trainer, context.run)
    if trainer.stopping:
        return _end_after_stop(context)
    if context.process.is_main:
        print_report(context, trainer.state, evaluation.results, time.monotonic() - started)
        _write_status(context.run, "finished")
    return 0


def _open_run_files(context: RunContext, resume_point: ResumePoint | None) -> list[Tracker]:
    """Write the configuration and environment of the run, and open its logs. Runs on rank 0 only."""
    run = context.run
    start_step = 0 if resume_point is None else resume_point.index.step
    was_rewound = rewind_metrics(run.metrics, start_step)
    RunStatus.write(run, "running")
    log_to_file(run.train_log)
    replace_text(run.training_config, dump_config(context.config))
    replace_text(run.environment, json.dumps(context.environment, indent=1) + "\n")
    is_changed = resume_point is not None and resume_point.changed
    return build_trackers(context.config, run, start_step, rewritten=was_rewound and is_changed)


def _train(trainer: Trainer, run: RunDirectory) -> None:
    """Train. If training fails, log the error and raise it again.

    Raises:
        TrainingError: another rank has died.
    """
    try:
        trainer.train()
    except BaseException as error:
        log_failure(error)
        if isinstance(error, KeyboardInterrupt):
            if trainer.engine.process.is_main:
                _write_status(run, "stopped", "interrupted")
            logger.info(
                "interrupted at step %d: steps after the last checkpoint are lost; %s is kept",
                trainer.state.step,
                run.path,
            )
        if is_lost_peer(error):
            raise TrainingError(_lost_peer_message(trainer.engine.process)) from error
        raise


def _end_after_stop(context: RunContext) -> int:
    """Record that the run was stopped. Return the exit code."""
    signals, process = context.signals, context.process
    if process.is_main:
        _write_status(context.run, "stopped", signals.received or "a signal on another rank")
    logger.info("run the same command with checkpointing.run_name=%s to resume", context.run.path.name)
    # exit code 130 ends a loop of a shell, but a launcher would restart the ranks
    is_interrupted = signals.received == "SIGINT" and process.world_size == 1
    return INTERRUPTED_EXIT_CODE if is_interrupted else context.config.checkpointing.requeue_exit_code


def _write_status(run: RunDirectory, state: State, reason: str = "") -> None:
    """Record how the run ended. A failure to write the status is only a warning, because the run itself has ended."""
    try:
        RunStatus.write(run, state, reason)
    except OSError as error:
        logger.warning("warning: the run is %s, but its status cannot be written: %s", state, describe_os_error(error))


def _launcher_warnings(config: RunConfig) -> Iterator[str]:
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts > 0 and config.checkpointing.requeue_exit_code != 0:
        yield (
            f"after a stop signal, torchrun --max-restarts {restarts} treats checkpointing.requeue_exit_code "
            f"{config.checkpointing.requeue_exit_code} as a failure and restarts the job immediately"
        )


def _lost_peer_message(process: Process) -> str:
    time.sleep(1)  # the process may not have exited yet
    lost = process.lost_ranks()
    which = f"rank {', '.join(map(str, lost))} of this node has died" if lost else "see its output for the cause"
    return (
        f"rank {process.rank}: a collective failed because another rank has ended: {which}. The last checkpoint is "
        "intact: run the same command again to resume from it"
    )


def _environment(deepspeed_config: dict[str, Any], process: Process) -> dict[str, Any]:
    """Return the content of environment.json: hardware, versions and DeepSpeed settings."""
    packages = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")
    return {
        "world_size": process.world_size,
        "device": torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "versions": {"pico_ds": __version__, **{name: version(name) for name in packages}},
        "deepspeed_config": deepspeed_config,
    }
