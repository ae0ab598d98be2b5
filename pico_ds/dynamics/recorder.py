"""Takes snapshots of the model."""

from collections.abc import Callable

import numpy as np
import torch

from pico_ds.config import RunConfig
from pico_ds.data.rows import Rows, TrainingRows
from pico_ds.dynamics.activations import observe, observe_head_entropy
from pico_ds.dynamics.adaptation_measures import AdaptationProbe
from pico_ds.dynamics.matrix_measures import proportional_effective_rank, singular_values
from pico_ds.dynamics.recorded_layers import recorded_layers
from pico_ds.dynamics.snapshot_files import Snapshot, Split, SplitSnapshot
from pico_ds.engine.distributed import Process
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.learners import Learner
from pico_ds.progress import Work, progress
from pico_ds.tasks.task_source import TaskSource


class SnapshotRecorder:
    """Takes snapshots of the model. Every rank computes its share of the rows and tasks."""

    def __init__(
        self,
        config: RunConfig,
        network: FunctionalModel,
        learner: Learner,
        training: TrainingRows,
        validation: Rows,
        tasks: TaskSource | None,
        process: Process,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            network: not compiled.
            tasks: held-out tasks, or None to skip the measures of adaptation.
            on_progress: called repeatedly while a snapshot is taken.
        """
        self._config, self._network, self._learner = config, network, learner
        self._training, self._validation, self._tasks, self._process = training, validation, tasks, process
        self._on_progress = on_progress
        names = [name for name, _ in network.skeleton.named_parameters()]
        self._layers = recorded_layers(names, config.learning_dynamics.layer_suffixes)

    def take(self, theta: Parameters, step: int, first_row: int) -> Snapshot:
        """Take a snapshot, in host memory. A collective.

        Args:
            first_row: global position of the next training rows.
        """
        with progress(f"taking the snapshot of step {step}, parts") as work:
            return self._take(theta, step, first_row, work)

    def _take(self, theta: Parameters, step: int, first_row: int, work: Work) -> Snapshot:
        def on_progress() -> None:
            self._on_progress()
            work.advance()

        settings = self._config.learning_dynamics
        val = self._validation.read(np.arange(min(settings.n_rows, self._validation.n_rows)))
        train = self._training.take(first_row, settings.n_rows)
        splits: dict[Split, SplitSnapshot] = {}
        for split, rows in (("train", train), ("val", val)):
            observation = observe(
                self._network,
                theta,
                rows,
                self._layers,
                settings.sequence_idx,
                self._config.training.micro_batch_size,
                self._process,
                on_progress,
            )
            splits[split] = SplitSnapshot(rows, observation)  # type: ignore[index]
        meta = {"head_entropy": observe_head_entropy(self._network, theta, val, self._process, on_progress)}
        for path, name in self._layers.items():
            on_progress()
            if theta[name].ndim == 2:
                rank = proportional_effective_rank(singular_values(theta[name]))
                meta[f"effective_rank.{path}"] = torch.tensor(rank)
        if self._tasks is not None and settings.n_tasks:
            probe = AdaptationProbe(
                self._network,
                self._learner,
                self._tasks,
                settings.n_tasks,
                settings.adaptation_steps,
                self._layers,
                self._process,
                on_progress,
            )
            meta |= {name: values.cpu() for name, values in probe.observe(theta).items()}
        header = {
            "precision": self._config.training.precision,
            "sequence_idx": str(settings.sequence_idx),
            "first_training_row": str(first_row),
            "learner": self._config.meta.learner,
        }
        # copies, because training continues while the snapshot is written
        weights = {path: theta[name].to("cpu", torch.float32, copy=True) for path, name in self._layers.items()}
        return Snapshot(step, splits, weights, meta, header)
