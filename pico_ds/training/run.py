"""One run, from configuration to report."""

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pico_ds import __version__
from pico_ds.config import RunConfig, dump_config
from pico_ds.config.deepspeed import resolve_deepspeed_config
from pico_ds.config.validation import warn_of
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.zero_settings import check_zero_settings
from pico_ds.meta.network import Parameters
from pico_ds.model.meta_model import MetaModel, build_meta_model
from pico_ds.training.assembly import COMPUTE_DTYPE, Ingredients, gather_ingredients
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.callbacks.evaluation import Evaluation
from pico_ds.training.callbacks.metrics_log import FirstStepClock, MetricsLog, ProgressBar
from pico_ds.training.callbacks.weights import SaveWeights
from pico_ds.training.outer_step import OuterStep
from pico_ds.training.report import print_report
from pico_ds.training.run_directory import RunDirectory, claim_run_directory
from pico_ds.training.terminal import log_failure, log_to_file, logger, start_console
from pico_ds.training.trackers import JsonLinesTracker, Tracker, WandbTracker
from pico_ds.training.trainer import Trainer


def run_training(
    config: RunConfig,
    config_name: str,
    deepspeed_json: dict[str, Any],
    deepspeed_name: str,
    process: Process,
    started: float,
) -> RunDirectory:
    """Train as configured; every rank calls this.

    Args:
        config_name: names the run where checkpointing.run_name is null.
        deepspeed_json: what `load_deepspeed_config` read.
        started: time of the command's start [s since the epoch].

    Raises:
        ConfigError, DataError, TaskError: nothing has been trained.
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
    for warning in warn_of(config):
        logger.warning("warning: %s", warning)
    check_zero_settings(deepspeed_json["zero_optimization"], deepspeed_name)
    deepspeed_config = resolve_deepspeed_config(deepspeed_json, config, process.world_size, deepspeed_name)
    logger.info("preparing the corpus (the first time: a tokenizer is trained and tokens are cached)")
    ingredients = gather_ingredients(config, process)
    config = ingredients.config
    module = _initial_module(ingredients)
    n_parameters = sum(weight.numel() for weight in module.parameters())
    engine = MetaEngine(module, config.training, deepspeed_config, process)
    # last of what can fail: a start that fails leaves no run behind
    run = claim_run_directory(config.checkpointing, Path(config_name).stem, process)
    if process.is_main:
        log_to_file(run.train_log)
        run.training_config.write_text(dump_config(config))
        run.environment.write_text(json.dumps(_environment(deepspeed_config, process), indent=1) + "\n")
    logger.info("%s: %s parameters, ZeRO stage %d", run.path, f"{n_parameters:,}", engine.stage)

    trackers = _trackers(config, run) if process.is_main else []
    evaluation = Evaluation(ingredients.evaluator, lambda: _initial_parameters(ingredients, process), run, trackers)
    callbacks: list[Callback] = [
        *([FirstStepClock(started), ProgressBar(console)] if process.is_main else []),
        *([MetricsLog(trackers, config.monitoring.log_every_n_steps)] if process.is_main else []),
        SaveWeights(run, ingredients.vocab_size, ingredients.corpus),
        evaluation,
    ]
    outer_step = OuterStep(config, ingredients.network, ingredients.rows, ingredients.tasks, process)
    trainer = Trainer(config, engine, outer_step, callbacks)
    train_started = time.monotonic()
    try:
        trainer.train()
    except BaseException as error:
        log_failure(error)
        if isinstance(error, KeyboardInterrupt):
            logger.info(
                "interrupted at step %d; steps after the last save are lost; %s stays", trainer.state.step, run.path
            )
        raise
    if process.is_main:
        seconds = time.monotonic() - train_started
        with run.train_log.open("a", encoding="utf-8") as log:
            for target in (console, Console(file=log, width=120)):
                print_report(target, config, config_name, evaluation.results, trainer.state, run, seconds)
    return run


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


def _initial_module(ingredients: Ingredients) -> MetaModel:
    config = ingredients.config
    return build_meta_model(config.model, config.meta, config.smlmt.n_way, ingredients.vocab_size, config.training.seed)


def _initial_parameters(ingredients: Ingredients, process: Process) -> Parameters:
    """The untrained weights as the engine held them, rounded to the run's precision."""
    dtype = COMPUTE_DTYPE[ingredients.config.training.precision]
    module = _initial_module(ingredients)
    return {
        name: weight.detach().to(process.device, dtype).to(torch.float32) for name, weight in module.named_parameters()
    }


def _trackers(config: RunConfig, run: RunDirectory) -> list[Tracker]:
    trackers: list[Tracker] = [JsonLinesTracker(run.metrics)]
    if config.monitoring.wandb.mode != "disabled":
        trackers.append(WandbTracker(config.monitoring.wandb, run.path.name, run.logs, config.model_dump()))
    return trackers
