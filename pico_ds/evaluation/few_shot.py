"""Few-shot accuracy on words that were never classes in training."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from pico_ds.config import Readout
from pico_ds.engine.distributed import Process
from pico_ds.errors import TaskError
from pico_ds.meta.episode_model import accuracy
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.heads import HeadWeights
from pico_ds.meta.inner_loop import AdaptedWeights
from pico_ds.meta.learners import EpisodeBatch, Learner
from pico_ds.model.meta_model import HEAD
from pico_ds.progress import track
from pico_ds.tasks.episode import Episode
from pico_ds.tasks.task_source import TaskSource

#: half-width of a 95 % interval in standard errors (normal approximation)
Z_95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95 % confidence interval."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> "Estimate":
        """Return the mean of the values, and 1.96 standard errors. The half-width of a single value is infinite."""
        array = np.asarray(values, dtype=np.float64)
        error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.inf
        return cls(float(array.mean()), Z_95 * float(error))

    @classmethod
    def of_seeds(cls, values: npt.ArrayLike) -> "Estimate":
        """Return the mean over seeds, with an interval from Student's t because there are few seeds."""
        array = np.asarray(values, dtype=np.float64)
        if len(array) < 2:
            return cls(float(array.mean()), math.inf)
        # the import takes half a second, and training does not need it
        from scipy.stats import t

        error = array.std(ddof=1) / math.sqrt(len(array))
        return cls(float(array.mean()), float(t.ppf(0.975, len(array) - 1) * error))

    def percent(self, signed: bool = False) -> str:
        """Return a text in percent, such as `61.2 ± 0.8`. The interval is omitted if it is infinite."""
        mean = f"{100 * self.mean:{'+' if signed else ''}.1f}"
        return f"{mean} ± {100 * self.half_width:.1f}" if math.isfinite(self.half_width) else mean

    def to_json(self) -> dict[str, float | None]:
        """Return the values for a JSON file. An infinite half-width becomes null."""
        return {"mean": self.mean, "half_width": self.half_width if math.isfinite(self.half_width) else None}


@dataclass(frozen=True)
class FewShotResult:
    """Query accuracies of the evaluation tasks, in task order, so that paired comparisons of runs are possible.

    Attributes:
        by_step: accuracy of every task after 0, 1, ... adaptation steps, `[steps + 1][tasks]`.
    """

    by_step: list[list[float]]

    @property
    def before(self) -> list[float]:
        """Accuracy of each task with the initial head, before adaptation."""
        return self.by_step[0]

    @property
    def after(self) -> list[float]:
        """Accuracy of each task after all adaptation steps."""
        return self.by_step[-1]


def evaluate_few_shot(
    network: FunctionalModel,
    learner: Learner,
    theta: Parameters,
    tasks: TaskSource,
    n_tasks: int,
    adaptation_steps: int,
    process: Process,
    should_continue: Callable[[], bool],
) -> FewShotResult:
    """Return accuracies on tasks 0 to n_tasks - 1 of step 0 after 0, 1, ... adaptation steps. A collective.

    The result does not depend on the number of ranks. When `should_continue` returns False, the rank skips its
    remaining tasks.
    """
    accuracies = torch.zeros(adaptation_steps + 1, n_tasks, device=process.device)
    local_indices = range(process.rank, n_tasks, process.world_size)
    for i in track(local_indices, f"evaluating few-shot tasks, {tasks.readout}", len(local_indices)):
        if not should_continue():
            break
        episode = tasks.sample(step=0, index=i).to(process.device)
        accuracies[:, i] = adaptation_curve(network, learner, theta, episode, tasks.readout, adaptation_steps)
    return FewShotResult(process.sum_over_ranks(accuracies).tolist())


def check_n_way(learner: Learner, theta: Parameters, n_way: int) -> None:
    """Check that the head supports `n_way` classes.

    Raises:
        TaskError: the head was trained for another number of classes.
    """
    own = {name.removeprefix(HEAD): part for name, part in theta.items() if name.startswith(HEAD)}
    fixed = learner.head.n_way(own)
    if fixed not in (None, n_way):
        raise TaskError(
            f"got {n_way} classes with meta.head: {learner.config.head}, which was trained for {fixed}; evaluate "
            f"{fixed}-way tasks, or use the prototype head: evaluation.head=prototype"
        )


def adaptation_curve(
    network: FunctionalModel, learner: Learner, theta: Parameters, episode: Episode, readout: Readout, steps: int
) -> Float[Tensor, " moments"]:
    """Return the query accuracy of one task after 0, 1, ..., `steps` adaptation steps of the learner."""
    accuracies_by_step = torch.zeros(steps + 1, device=episode.support.labels.device)

    @torch.no_grad()
    def evaluate_at(count: int, body: Parameters, head: HeadWeights) -> None:
        logits = learner.head.logits(head, network.features(body, episode.query, readout))
        accuracies_by_step[count] = accuracy(logits, episode.query)

    def after_step(count: int, adapted: AdaptedWeights) -> None:
        evaluate_at(count, adapted.leaves, adapted.head)

    adapted = learner.adapt(EpisodeBatch(network, theta, episode, readout, measure=False), steps, after_step)
    evaluate_at(0, theta, adapted.initial_head)
    evaluate_at(steps, adapted.leaves, adapted.head)
    return accuracies_by_step
