"""Few-shot accuracy on words that were never classes in training."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pico_ds.engine.distributed import Process
from pico_ds.meta.learners import Learner
from pico_ds.meta.network import Network, Parameters
from pico_ds.meta.problem import accuracy
from pico_ds.tasks.smlmt import SMLMT

#: half-width of a 95 % interval in standard errors (normal approximation)
Z_95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks with a 95 % interval."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> "Estimate":
        """Mean and 1.96 standard errors; the half-width of a single value is infinite."""
        array = np.asarray(values, dtype=np.float64)
        error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.inf
        return cls(float(array.mean()), Z_95 * float(error))


@dataclass(frozen=True)
class FewShotResult:
    """Query accuracies of the evaluation tasks, in task order, so that runs can be compared in pairs.

    Attributes:
        before: accuracy with the initial head, by task.
        after: accuracy after the adaptation steps, by task.
    """

    before: list[float]
    after: list[float]


def evaluate_few_shot(
    network: Network,
    learner: Learner,
    theta: Parameters,
    tasks: SMLMT,
    n_tasks: int,
    adaptation_steps: int,
    process: Process,
    go_on: Callable[[], bool],
) -> FewShotResult:
    """Accuracy before and after adaptation on tasks 0 to n_tasks - 1 of step 0; the same on any number of ranks.

    Where `go_on` says False the remaining tasks of this rank are left out.
    """
    accuracies = torch.zeros(2, n_tasks, device=process.device)
    for i in range(process.rank, n_tasks, process.world_size):
        if not go_on():
            break
        episode = tasks.sample(step=0, index=i).to(process.device)
        adapted, head = learner.adapt(network, theta, episode, tasks.readout, adaptation_steps), learner.head
        with torch.no_grad():
            before = head.logits(adapted.initial_head, network.features(theta, episode.query, tasks.readout))
            after = head.logits(adapted.head, network.features(adapted.leaves, episode.query, tasks.readout))
            accuracies[0, i] = accuracy(before, episode.query)
            accuracies[1, i] = accuracy(after, episode.query)
    before_all, after_all = process.sum_over_ranks(accuracies).tolist()
    return FewShotResult(before_all, after_all)
