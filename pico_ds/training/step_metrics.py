"""Metrics of one outer step, which are equal on every rank, and their means between two log lines."""

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
from pico_ds.tasks.hybrid_schedule import StepKind


class ReducedMetrics:
    """Metrics of one outer step, summed over ranks and copied to the host asynchronously.

    A single all-reduce sums the metrics and the values that the hosts exchange. The host waits for the device only when
    `values`, `applied` or `host_sums` is read.
    """

    def __init__(self, contributions: Mapping[str, Tensor], host_values: Mapping[str, float], process: Process) -> None:
        """Start the all-reduce. A collective.

        Args:
            contributions: this rank's part of each metric, as scalars on the device.
            host_values: values that this rank's host sends to the others.
        """
        self._names, self._host_names = tuple(contributions), tuple(host_values)
        packed = torch.stack([value.double() for value in contributions.values()])
        host = process.pinned(torch.tensor(list(host_values.values()), dtype=torch.float64))
        self._sums = process.sum_over_ranks(torch.cat([packed, host.to(packed.device, non_blocking=True)]))
        self._copied: torch.cuda.Event | None = None

    @property
    def finite(self) -> Bool[Tensor, ""]:
        """Whether every metric is finite. If a metric is NaN on one rank, its sum is NaN on all ranks."""
        return self._sums[: len(self._names)].isfinite().all()

    def copy_to_host(self, gradient_norm: Float[Tensor, ""]) -> None:
        """Append the norm of the outer gradient, and start the copy to the host."""
        values = torch.cat([self._sums, gradient_norm.to(self._sums)[None]])
        self._sums = values
        if values.device.type == "cuda":
            self._sums = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._sums.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[float]:
        """Wait for the device. Return the metric sums, the host sums and the gradient norm, in this order."""
        if self._copied is not None:
            self._copied.synchronize()
        return list(self._sums.tolist())

    @cached_property
    def _on_host(self) -> tuple[dict[str, float], dict[str, float]]:
        *sums, norm = self.wait()
        count = len(self._names)
        metrics = dict(zip(self._names, sums[:count], strict=True)) | {"outer_gradient_norm": norm}
        return metrics, dict(zip(self._host_names, sums[count:], strict=True))

    @property
    def values(self) -> dict[str, float]:
        """Metrics by name. They are equal on every rank."""
        return self._on_host[0]

    @property
    def applied(self) -> bool:
        """Whether the optimizer applied the step. It skips a step whose loss or gradient is not finite."""
        return all(math.isfinite(value) for value in self.values.values())

    @property
    def host_sums(self) -> dict[str, float]:
        """Sums of `host_values` over ranks, by name."""
        return self._on_host[1]


@dataclass
class StepMetrics:
    """Metrics of one outer step.

    Attributes:
        reduced: metrics of all ranks.
        lr: learning rate of the step.
        tokens, tasks, flops: summed over all ranks.
        data_wait_seconds: time for which this rank waited for its data [s].
        seconds: wall time of the step, without callbacks [s]. Because the host runs ahead of the device, a part of the
            time may be counted in the previous step. The sum over steps is correct.
    """

    kind: StepKind
    reduced: ReducedMetrics
    lr: float
    tokens: int
    tasks: int
    flops: float = 0.0
    data_wait_seconds: float = 0.0
    seconds: float = 0.0


@dataclass
class MetricsWindow:
    """Means of the metrics since the last log line. Each metric is averaged over the steps that have it."""

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
        """Add one step. This waits for its result."""
        for name, value in metrics.reduced.values.items():
            # keep the name of a metric even if none of its values is finite
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
        """Return the mean of the finite values of each metric, the last learning rate, and the throughput of all ranks.

        Args:
            peak_flops: peak performance of all devices together [FLOP/s]; None if it is unknown.
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
    """Return the peak memory of this process: allocated on the GPU, or resident on the host without a GPU [GiB]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
