"""One run, from configuration to report."""

import io
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pico_ds import __version__
from pico_ds.checkpoint.store import CheckpointStore
from pico_ds.command import INTERRUPTED_EXIT_CODE
from pico_ds.config import RunConfig, dump_config
from pico_ds.config.deepspeed import resolve_deepspeed_config
from pico_ds.config.validation import warn_of
from pico_ds.console import make_console
from pico_ds.engine.distributed import Process, is_lost_peer
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.optimizer_state import OptimizerState
from pico_ds.engine.zero_settings import check_zero_settings
from pico_ds.errors import PicoError, describe_os_error
from pico_ds.files import replace_text
from pico_ds.hub.repository import HubRepository
from pico_ds.meta.network import Parameters
from pico_ds.tasks.smlmt import TASKS_VERSION
from pico_ds.training.assembly import Ingredients, gather_ingredients
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.callbacks.checkpointing import Checkpointing
from pico_ds.training.callbacks.data_cursor import DataCursor
from pico_ds.training.callbacks.evaluation import Evaluation
from pico_ds.training.callbacks.heartbeat import Heartbeat
from pico_ds.training.callbacks.hub_pushes import HubPushes, prepare_repository
from pico_ds.training.callbacks.metrics_log import FirstStepClock, MetricsLog, ProgressBar
from pico_ds.training.callbacks.profile import Profile
from pico_ds.training.errors import TrainingError
from pico_ds.training.failures import FailureReport
from pico_ds.training.initial_weights import initial_module, initial_parameters
from pico_ds.training.outer_step import OuterStep
from pico_ds.training.report import print_report
from pico_ds.training.resume import Resumer, goes_on, rewind_metrics
from pico_ds.training.run_directory import Claim, claim_run_directory
from pico_ds.training.run_files import RunDirectory, RunStatus, State
from pico_ds.training.saving import build_saver
from pico_ds.training.stop_signals import StopSignals
from pico_ds.training.terminal import log_failure, log_lines, log_to_file, logger, start_console
from pico_ds.training.trackers import Tracker, build_trackers, check_trackers
from pico_ds.training.trainer import Trainer
from pico_ds.training.watchdog import Watchdog


def run_training(
    config: RunConfig,
    config_name: str,
    deepspeed_json: dict[str, Any],
    deepspeed_name: str,
    process: Process,
    started: float,
    signals: StopSignals,
) -> int:
    """Train as configured, from the beginning or from a checkpoint; every rank calls this.

    Args:
        config_name: names the run where checkpointing.run_name is null.
        deepspeed_json: what `load_deepspeed_config` read.
        started: time of the command's start [s since the epoch].

    Returns:
        the exit code: 0, or `checkpointing.requeue_exit_code` after a stop signal.

    Raises:
        ConfigError, DataError, TaskError: nothing has been trained.
        CheckpointError: a checkpoint that cannot be read or written.
        TrainingError: training cannot go on.
    """
    console = start_console(process.is_main)
    logger.info(
        "pico_ds: config %s, %s, %d rank(s) on %s, %s",
        config_name,
        deepspeed_name,
        process.world_size,
        process.device.type,
        config.training.precision,
    )
    for warning in (*warn_of(config), *_warn_of_launcher(config)):
        logger.warning("warning: %s", warning)
    check_trackers(config)
    check_zero_settings(deepspeed_json["zero_optimization"], deepspeed_name)
    deepspeed_config = resolve_deepspeed_config(deepspeed_json, config, process.world_size, deepspeed_name)
    logger.info("preparing the corpus (the first time: a tokenizer is trained and tokens are cached)")
    ingredients = gather_ingredients(config, process)
    config = ingredients.config
    # where it goes on from a checkpoint the weights are replaced: what they once came from may be gone
    module = initial_module(config, with_source=not goes_on(config.checkpointing))
    n_parameters = sum(weight.numel() for weight in module.parameters())
    engine = MetaEngine(module, config.training, deepspeed_config, process)
    repository = None if config.checkpointing.hub.repo_id is None else prepare_repository(config, process)
    # last of what can fail: a start that fails leaves no run behind
    claim = claim_run_directory(config.checkpointing, Path(config_name).stem, process)
    logger.info("%s: %s parameters, ZeRO stage %d", claim.run.path, f"{n_parameters:,}", engine.stage)
    environment = _environment(deepspeed_config, process)
    failures = FailureReport(claim.run, process, environment, process.from_main(int(started)))
    hang_timeout = config.training.hang_timeout_seconds
    try:
        with Watchdog(
            hang_timeout, process.rank, claim.run.logs, process.lost_ranks, failures.write_of_watchdog
        ) as watchdog:
            exit_code = _train_in(
                claim,
                ingredients,
                engine,
                environment,
                watchdog,
                failures,
                repository,
                config_name,
                started,
                signals,
                console,
            )
            # one that ended before the others would be a lost one to them
            process.wait_for_all()
    except KeyboardInterrupt:
        if not failures.has_begun:
            claim.discard_if_new()
        raise
    except Exception as error:
        # what is wrong with a configuration or a checkpoint is known before the first step, and all ranks say it
        if failures.has_begun or not isinstance(error, PicoError):
            failures.write(error, "lost_peer" if is_lost_peer(error.__cause__ or error) else "error")
        else:
            claim.discard_if_new()
        raise
    return exit_code


def _train_in(
    claim: Claim,
    ingredients: Ingredients,
    engine: MetaEngine,
    environment: dict[str, Any],
    watchdog: Watchdog,
    failures: FailureReport,
    repository: HubRepository | None,
    config_name: str,
    started: float,
    signals: StopSignals,
    console: Console,
) -> int:
    """Resume where there is something to resume from, train, and report; returns the exit code."""
    config, process, run = ingredients.config, engine.process, claim.run
    corpus = {**ingredients.corpus.identity(), "tasks": TASKS_VERSION}
    store, optimizer_state = CheckpointStore(run.checkpoints), OptimizerState(engine)
    # of saves and of snapshots: what another start left half written is removed, what is being written is not
    launch = process.from_main(secrets.randbits(40))
    point = Resumer(config, corpus, store, optimizer_state, process, claim.since, watchdog.beat).resume()
    start_step = 0 if point is None else point.index.step
    trackers: list[Tracker] = []
    if process.is_main:
        rewound = rewind_metrics(run.metrics, start_step)
        RunStatus.say(run, "running")
        log_to_file(run.train_log)
        replace_text(run.training_config, dump_config(config))
        replace_text(run.environment, json.dumps(environment, indent=1) + "\n")
        changed = point is not None and point.changed
        trackers = build_trackers(config, run, start_step, rewritten=rewound and changed)

    def go_on() -> bool:
        watchdog.beat()
        return signals.received is None

    evaluation = Evaluation(ingredients.evaluator, lambda: _untrained(config, process), run, trackers, go_on)
    pushes = None
    if config.checkpointing.hub.repo_id is not None:
        pushes = HubPushes(repository, config, run, store, evaluation.results, go_on)
    last = point.index if point is not None and point.checkpoint.parent.resolve() == store.directory.resolve() else None
    callbacks: list[Callback] = [
        *([FirstStepClock(started), ProgressBar(console)] if process.is_main else []),
        DataCursor(ingredients.rows),
        *([MetricsLog(trackers, config.monitoring.log_every_n_steps)] if process.is_main else []),
        Checkpointing(
            build_saver(ingredients, store, optimizer_state, launch, watchdog, trackers, last, pushes),
            signals,
            store.next_save_number() if process.is_main else 0,
            last,
            lambda: optimizer_state.steps,
            {"corpus": corpus, "environment": environment},
        ),
        evaluation,
        *_snapshots(ingredients, store, launch, process, watchdog.beat),
        *([pushes] if pushes is not None else []),
        *([Profile(config.monitoring.profile_steps, run.logs)] if config.monitoring.profile_steps else []),
        Heartbeat(watchdog),
    ]
    outer_step = OuterStep(
        config, ingredients.network, ingredients.learner, ingredients.rows, ingredients.tasks, process
    )
    trainer = Trainer(config, engine, outer_step, callbacks)
    if point is not None:
        trainer.restore(point.index.progress, point.index.callbacks)
    if trainer.state.step >= config.training.max_steps:
        logger.info("the run has taken all of its %d steps; raise training.max_steps to go on", trainer.state.step)
    signals.install()
    failures.begin(lambda: trainer.state.step)
    train_started = time.monotonic()
    _train(trainer, run)
    if trainer.stopping:
        if process.is_main:
            _say(run, "stopped", signals.received or "a signal on another rank")
        logger.info("the same command with checkpointing.run_name=%s goes on from here", run.path.name)
        # a shell ends a loop of commands if one of them is interrupted; a launcher would start the ranks again
        is_interrupted = signals.received == "SIGINT" and process.world_size == 1
        return INTERRUPTED_EXIT_CODE if is_interrupted else config.checkpointing.requeue_exit_code
    if process.is_main:
        seconds = time.monotonic() - train_started
        log, results, ranks = io.StringIO(), evaluation.results, process.world_size
        for target in (console, make_console(file=log, width=120)):
            print_report(target, config, config_name, results, trainer.state, run, seconds, ranks)
        log_lines(log.getvalue())
        _say(run, "finished")
    return 0


def _train(trainer: Trainer, run: RunDirectory) -> None:
    """Train, and say in the log what ended it."""
    try:
        trainer.train()
    except BaseException as error:
        log_failure(error)
        if isinstance(error, KeyboardInterrupt):
            if trainer.engine.process.is_main:
                _say(run, "stopped", "interrupted")
            logger.info(
                "interrupted at step %d; steps after the last save are lost; %s stays", trainer.state.step, run.path
            )
        if is_lost_peer(error):
            raise TrainingError(_lost_peer(trainer.engine.process)) from error
        raise


def _say(run: RunDirectory, state: State, reason: str = "") -> None:
    """Write how a run has ended; if even that is impossible, training has not failed."""
    try:
        RunStatus.say(run, state, reason)
    except OSError as error:
        logger.warning("warning: the run is %s, but its status is not written: %s", state, describe_os_error(error))


def _warn_of_launcher(config: RunConfig) -> Iterator[str]:
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts > 0 and config.checkpointing.requeue_exit_code != 0:
        yield (
            f"after a stop signal torchrun --max-restarts {restarts} takes checkpointing.requeue_exit_code "
            f"{config.checkpointing.requeue_exit_code} for a failure and starts the job again at once"
        )


def _lost_peer(process: Process) -> str:
    time.sleep(1)  # for what is dying to be dead
    lost = process.lost_ranks()
    which = f"rank {', '.join(map(str, lost))} of this node has died" if lost else "its own output says why"
    return (
        f"rank {process.rank}: a collective failed because another rank has gone: {which}. The last checkpoint stands; "
        "the same command goes on from it"
    )


def _environment(deepspeed_config: dict[str, Any], process: Process) -> dict[str, Any]:
    """What a run depends on beside its configuration."""
    packages = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")
    return {
        "world_size": process.world_size,
        "device": torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "versions": {"pico_ds": __version__, **{name: version(name) for name in packages}},
        "deepspeed_config": deepspeed_config,
    }


def _snapshots(
    ingredients: Ingredients, store: CheckpointStore, launch: int, process: Process, on_progress: Callable[[], None]
) -> list[Callback]:
    """What takes snapshots, where any are asked for. A collective."""
    if ingredients.config.learning_dynamics.save_every_n_steps is None:
        return []
    # here, for `datasets` takes a second to import that other runs need not wait for
    from pico_ds.training.callbacks.snapshots import build_snapshots

    return [build_snapshots(ingredients, store, launch, process, on_progress)]


def _untrained(config: RunConfig, process: Process) -> Parameters:
    return {name: weight.to(torch.float32) for name, weight in initial_parameters(config, process).items()}
