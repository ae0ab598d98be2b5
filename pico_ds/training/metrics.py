"""Metrics of one outer step, equal on every rank, and their means over the steps between two log lines."""

import math
import resource
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from pico_ds.engine.distributed import Process
from pico_ds.training.outer_step import LocalStep
from pico_ds.training.state import StepKind


@dataclass(frozen=True)
class StepMetrics:
    """What one outer step showed.

    Attributes:
        values: metric by name, the same on every rank.
        applied: whether the optimizer stepped; False where the loss or gradient was not finite.
        seconds: wall time of the step.
        tokens, tasks: work of all ranks.
    """

    kind: StepKind
    values: dict[str, float]
    applied: bool
    seconds: float
    tokens: int
    tasks: int


def reduce_contributions(local: LocalStep, process: Process) -> dict[str, float]:
    """The sum of every contribution over ranks: one all-reduce and one device sync for all metrics."""
    packed = torch.stack([value.double() for value in local.contributions.values()])
    return dict(zip(local.contributions, process.sum_over_ranks(packed).tolist(), strict=True))


def all_finite(values: dict[str, float]) -> bool:
    """Whether every reduced metric is a number; a NaN on one rank is a NaN in the sum that every rank holds."""
    return all(math.isfinite(value) for value in values.values())


@dataclass
class Window:
    """Means of the metrics over the steps since the last log line; a metric is averaged over the steps that have it."""

    values: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    meta_seconds: float = 0.0
    tokens: int = 0
    tasks: int = 0

    def add(self, metrics: StepMetrics) -> None:
        """Take in one step."""
        for name, value in metrics.values.items():
            self.values.setdefault(name, []).append(value)
        self.seconds += metrics.seconds
        self.tokens += metrics.tokens
        self.tasks += metrics.tasks
        if metrics.kind == "meta":
            self.meta_seconds += metrics.seconds

    def summary(self) -> dict[str, Any]:
        """Mean of each metric over its finite values, the last learning rate, and throughput over all ranks."""
        means: dict[str, Any] = {}
        for name, values in self.values.items():
            finite = [value for value in values if math.isfinite(value)]
            means[name] = sum(finite) / len(finite) if finite else None
        if "lr" in self.values:
            means["lr"] = self.values["lr"][-1]
        means["seconds_per_step"] = self.seconds / max(1, len(self.values.get("lr", ())))
        means["tokens_per_second"] = self.tokens / self.seconds if self.seconds else None
        if self.tasks:
            means["tasks_per_second"] = self.tasks / self.meta_seconds
        return means


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process: allocated on the GPU, else resident on the host [GiB]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
