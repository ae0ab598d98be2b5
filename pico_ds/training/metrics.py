"""Metrics of one outer step, equal on every rank, and their means over the steps between two log lines."""

import math
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pico_ds.engine.distributed import Process
from pico_ds.training.state import StepKind


class Reading:
    """Numbers that a device is still to compute, on their way to the host."""

    def __init__(self, values: Float[Tensor, " count"]) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = values
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[float]:
        """The numbers, when the device has come to them."""
        if self._event is not None:
            self._event.synchronize()
        return list(self._host.tolist())


class Reduced:
    """Every contribution summed over ranks, and what the hosts tell each other; all still on the device."""

    def __init__(self, contributions: Mapping[str, Tensor], told: Mapping[str, float], process: Process) -> None:
        """One all-reduce, and no sync.

        Args:
            told: numbers that the host of this rank has.
        """
        self._names, self._told = tuple(contributions), tuple(told)
        packed = torch.stack([value.double() for value in contributions.values()])
        host = process.pinned(torch.tensor(list(told.values()), dtype=torch.float64))
        self._sums = process.sum_over_ranks(torch.cat([packed, host.to(packed.device, non_blocking=True)]))

    @property
    def finite(self) -> Bool[Tensor, ""]:
        """Whether every contribution is a number; a NaN on one rank is a NaN in the sum that every rank holds."""
        return self._sums[: len(self._names)].isfinite().all()

    def read_with(self, gradient_norm: Float[Tensor, ""]) -> "Outcome":
        """Begin to bring everything to the host."""
        both = torch.cat([self._sums, gradient_norm.to(self._sums)[None]])
        return Outcome(self._names, self._told, Reading(both))


class Outcome:
    """What came of a step; whoever asks waits for the device, once."""

    def __init__(self, names: tuple[str, ...], told: tuple[str, ...], reading: Reading) -> None:
        self._names, self._told, self._reading = names, told, reading

    @cached_property
    def _read(self) -> tuple[dict[str, float], dict[str, float]]:
        *sums, norm = self._reading.wait()
        count = len(self._names)
        values = dict(zip(self._names, sums[:count], strict=True)) | {"outer_gradient_norm": norm}
        return values, dict(zip(self._told, sums[count:], strict=True))

    @property
    def values(self) -> dict[str, float]:
        """Metric by name, the same on every rank."""
        return self._read[0]

    @property
    def applied(self) -> bool:
        """Whether the optimizer stepped; not where the loss or the gradient is not finite."""
        return all(math.isfinite(value) for value in self.values.values())

    @property
    def told(self) -> dict[str, float]:
        """Sum over ranks of what their hosts told."""
        return self._read[1]


@dataclass
class StepMetrics:
    """One outer step.

    Attributes:
        outcome: what came of it; on the device until somebody asks.
        lr: of the step.
        tokens, tasks, flops: work of all ranks.
        data_wait_seconds: for which this rank waited for its data.
        seconds: wall time of the step until it was settled, without what ran between; as the host runs ahead of the
            device, a part of it may stand with the step before, and the sum over steps is right.
    """

    kind: StepKind
    outcome: Outcome
    lr: float
    tokens: int
    tasks: int
    flops: float = 0.0
    data_wait_seconds: float = 0.0
    seconds: float = 0.0


@dataclass
class Window:
    """Means of the metrics over the steps since the last log line; a metric is averaged over the steps that have it."""

    values: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    lr: float | None = None
    seconds: float = 0.0
    meta_seconds: float = 0.0
    tokens: int = 0
    tasks: int = 0
    flops: float = 0.0
    data_wait_seconds: float = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Take in one step; waits for its outcome."""
        for name, value in metrics.outcome.values.items():
            # a metric that was never finite keeps its name
            self.values.setdefault(name, []).extend([value] if math.isfinite(value) else [])
        self.steps += 1
        self.lr = metrics.lr
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
        means["lr"] = self.lr
        means["seconds_per_step"] = self.seconds / max(1, self.steps)
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
