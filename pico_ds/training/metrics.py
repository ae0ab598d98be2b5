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
        tokens, tasks, flops: work of all ranks.
        data_wait_seconds: for which this rank waited for its data.
        raised: flags of callbacks that any rank raised.
    """

    kind: StepKind
    values: dict[str, float]
    applied: bool
    seconds: float
    tokens: int
    tasks: int
    raised: frozenset[str] = frozenset()
    flops: float = 0.0
    data_wait_seconds: float = 0.0


def reduce_contributions(
    local: LocalStep, flags: dict[str, bool], process: Process
) -> tuple[dict[str, float], frozenset[str]]:
    """The sum of every contribution over ranks, and the flags that any rank raised.

    One all-reduce and one device sync for all of them.
    """
    packed = torch.stack([value.double() for value in local.contributions.values()])
    raised = torch.tensor([*map(float, flags.values())], dtype=torch.float64).to(packed.device, non_blocking=True)
    sums = process.sum_over_ranks(torch.cat([packed, raised])).tolist()
    values = dict(zip(local.contributions, sums, strict=False))
    return values, frozenset(name for name, count in zip(flags, sums[len(values) :], strict=True) if count > 0)


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
    flops: float = 0.0
    data_wait_seconds: float = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Take in one step."""
        for name, value in metrics.values.items():
            # a metric that was never finite keeps its name
            self.values.setdefault(name, []).extend([value] if math.isfinite(value) else [])
        self.seconds += metrics.seconds
        self.tokens += metrics.tokens
        self.tasks += metrics.tasks
        self.flops += metrics.flops
        self.data_wait_seconds += metrics.data_wait_seconds
        if metrics.kind == "meta":
            self.meta_seconds += metrics.seconds

    def summary(self, peak_flops: float | None = None) -> dict[str, Any]:
        """Mean of each metric over its finite values, the last learning rate, and throughput over all ranks.

        Args:
            peak_flops: of all devices together [FLOP/s]; None where it is not known.
        """
        means: dict[str, Any] = {}
        for name, values in self.values.items():
            means[name] = sum(values) / len(values) if values else None
        if "lr" in self.values:
            means["lr"] = self.values["lr"][-1]
        means["seconds_per_step"] = self.seconds / max(1, len(self.values.get("lr", ())))
        means["tokens_per_second"] = self.tokens / self.seconds if self.seconds else None
        means["data_wait_fraction"] = self.data_wait_seconds / self.seconds if self.seconds else None
        if peak_flops is not None and self.seconds:
            means["model_flops_utilization"] = self.flops / self.seconds / peak_flops
        if self.tasks:
            means["tasks_per_second"] = self.tasks / self.meta_seconds
        return means


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process: allocated on the GPU, else resident on the host [GiB]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
