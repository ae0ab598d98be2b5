"""The Python interface for notebooks and scripts. Everything runs in this process, without a launcher."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pico_ds.config import Readout, RunConfig
from pico_ds.data import corpus as corpora
from pico_ds.data.corpus import Corpus
from pico_ds.dynamics.snapshot_reader import RunSnapshots
from pico_ds.engine.distributed import Process, start_process, stop_process
from pico_ds.evaluation.few_shot import Estimate, FewShotResult, adaptation_curve, evaluate_few_shot
from pico_ds.evaluation.few_shot_grid import Model
from pico_ds.faults.stop_signals import StopSignals
from pico_ds.meta import learners
from pico_ds.meta.functional_model_builder import build_functional_model
from pico_ds.meta.inner_loop import AdaptedWeights
from pico_ds.meta.learners import EpisodeBatch, Learner
from pico_ds.meta.starting_model import initial_parameters, initial_weights_name
from pico_ds.runs.trained_run import TrainedModel, load_trained_model
from pico_ds.tasks.episode import Episode
from pico_ds.tasks.index.class_words import WordSplit
from pico_ds.tasks.task_builder import TaskBuilder
from pico_ds.tasks.task_source import TaskSource
from pico_ds.tasks.task_statistics import describe
from pico_ds.training.run_training import RunRequest, run_training

_ZERO_1 = {"zero_optimization": {"stage": 1}}


def open_corpus(config: RunConfig) -> Corpus:
    """Open the corpus of a configuration. The first call trains its tokenizer and tokenizes its text, and caches both.

    Raises:
        DataError: the data cannot be read.
    """
    return corpora.open_corpus(config.data)


def build_tasks(
    config: RunConfig, corpus: Corpus, split: WordSplit = "train", readout: Readout | None = None
) -> TaskSource:
    """Return a source of tasks of a corpus. `tasks.sample(step, index)` returns one task.

    Args:
        split: `train`, or the held-out words of `validation` or `test`.
        readout: position at which contexts are read; `smlmt.readout` by default.

    Raises:
        TaskError: the corpus cannot supply the tasks.
    """
    builder = TaskBuilder(config, corpus)
    return builder.training(readout) if split == "train" else builder.held_out(split, readout)


def show_task(task: Episode, corpus: Corpus) -> str:
    """Return the contexts of a task as text, one per line, with their set and class."""
    return "\n".join(describe(task, corpus.tokenizer))


def build_model(config: RunConfig, corpus: Corpus) -> Model:
    """Return an untrained model, with the weights that training starts from.

    Raises:
        ConfigError: the vocabulary is smaller than the tokenizer's, or `model.init_from` cannot be used.
    """
    vocab_size = config.model.vocab_size or corpus.tokenizer.vocab_size
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})
    device = _this_process().device
    network = build_functional_model(config, vocab_size, device)
    theta = initial_parameters(config, device)
    learner = learners.make_learner(config.evaluation_meta, network.skeleton.decoder)
    return Model(network, learner, theta, lambda: theta, corpus.tokenizer, initial_weights_name(config))


def make_learner(config: RunConfig, model: Model) -> Learner:
    """Return the learner of a configuration for the decoder of a model.

    Raises:
        ConfigError: `meta.adapt` matches no weight of the decoder.
    """
    return learners.make_learner(config.meta, model.network.skeleton.decoder)


@dataclass(frozen=True)
class Adaptation:
    """The result of adapting a model to one task.

    Attributes:
        accuracies: query accuracy after 0, 1, 2, ... inner steps.
        weights: the adapted weights.
    """

    accuracies: list[float]
    weights: AdaptedWeights


def adapt(model: Model, task: Episode, readout: Readout, steps: int) -> Adaptation:
    """Adapt a model to a task with `steps` inner steps. This does not change the model."""
    task = task.to(_this_process().device)
    curve = adaptation_curve(model.network, model.learner, model.theta, task, readout, steps)
    batch = EpisodeBatch(model.network, model.theta, task, readout, measure=False)
    weights = model.learner.adapt(batch, steps)
    return Adaptation(curve.tolist(), weights)


@dataclass(frozen=True)
class Evaluation:
    """Few-shot accuracy on held-out tasks.

    Attributes:
        tasks: accuracies of each task after 0, 1, 2, ... inner steps.
    """

    tasks: FewShotResult

    @property
    def before(self) -> Estimate:
        """Mean accuracy before adaptation, with a 95 % confidence interval."""
        return Estimate.of(self.tasks.before)

    @property
    def after(self) -> Estimate:
        """Mean accuracy after adaptation, with a 95 % confidence interval."""
        return Estimate.of(self.tasks.after)

    def __str__(self) -> str:
        return f"{self.before.percent()} % before adaptation, {self.after.percent()} % after"


@dataclass(frozen=True)
class Run:
    """A checkpoint of a run: its model, its configuration and its data."""

    trained: TrainedModel

    @property
    def config(self) -> RunConfig:
        """The configuration of the run, with the overrides of `load_run`."""
        return self.trained.config

    @property
    def step(self) -> int:
        """Number of outer steps of the checkpoint."""
        return self.trained.step

    @property
    def model(self) -> Model:
        """The model and its weights."""
        return self.trained.model

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus that the run was trained on.

        Raises:
            ConfigError: the corpus now has a different tokenizer.
        """
        return self.trained.open_corpus()

    @cached_property
    def snapshots(self) -> RunSnapshots:
        """The snapshots of learning dynamics of the run.

        Raises:
            ConfigError: the run has no snapshots.
        """
        return RunSnapshots.of(self.trained.run)

    def tasks(self, split: WordSplit = "validation", readout: Readout | None = None) -> TaskSource:
        """Return a source of tasks of the run's corpus. For the arguments, see `build_tasks`."""
        return build_tasks(self.config, self.corpus, split, readout)

    def adapt(self, task: Episode, steps: int | None = None, readout: Readout | None = None) -> Adaptation:
        """Adapt the model to a task.

        Args:
            steps: inner steps; `evaluation.adaptation_steps` by default.
            readout: the readout that the task was built for; `smlmt.readout` by default.
        """
        steps = self.config.evaluation.adaptation_steps if steps is None else steps
        return adapt(self.model, task, readout or self.config.smlmt.readout, steps)

    def evaluate(self, n_tasks: int = 100, split: WordSplit = "validation", steps: int | None = None) -> Evaluation:
        """Return the few-shot accuracy on tasks of held-out words in held-out documents.

        Args:
            steps: inner steps; `evaluation.adaptation_steps` by default.

        Raises:
            TaskError: the corpus cannot supply the tasks.
        """
        steps = self.config.evaluation.adaptation_steps if steps is None else steps
        model, tasks = self.model, self.tasks(split)
        return Evaluation(
            evaluate_few_shot(
                model.network, model.learner, model.theta, tasks, n_tasks, steps, _this_process(), lambda: True
            )
        )

    def layer(self, name: str, kind: str = "weights", split: str = "train") -> dict[int, Float[Tensor, "..."]]:
        """Return one layer of each snapshot, by step.

        Args:
            name: module path, such as `layers.0.attention.v_proj`.
            kind: `weights`, `gradients` or `activations`.
            split: rows from which gradients and activations were computed: `train` or `val`.

        Raises:
            ConfigError: the run has no snapshots, or they do not contain the layer.
        """
        return {step: self.snapshots.tensors(step, split, kind)[name] for step in self.snapshots.by_step}


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Load a checkpoint, or the newest checkpoint of a run directory.

    Args:
        overrides: `section.key=value`, applied to the configuration of the run.

    Raises:
        CheckpointError: there is no checkpoint, or its weights are of another model.
        ConfigError: an override is invalid.
    """
    return Run(load_trained_model(Path(path), list(overrides), _this_process()))


def train(config: RunConfig, name: str = "run") -> Run:
    """Train in this process, or resume the run of `checkpointing.run_name`. Return the trained run.

    Args:
        name: name of the run directory, followed by a number, if `checkpointing.run_name` is null.

    Raises:
        ConfigError, DataError, TaskError, CheckpointError, TrainingError: see `run_training`.
    """
    signals = StopSignals()
    process = start_process()
    try:
        directory = run_training(RunRequest(config, name, _ZERO_1, "ZeRO 1", time.time()), process, signals).directory
    finally:
        signals.uninstall()
        stop_process()
    return load_run(directory)


def _this_process() -> Process:
    """Return this process as the only rank."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Process(rank=0, world_size=1, local_rank=0, device=device)
