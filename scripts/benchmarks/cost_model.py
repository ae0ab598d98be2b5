"""What a step costs by the simplest model that has a meaning: latency of a ring, bytes over bandwidth, FLOPs over rate.

Hockney's model of a message (Hockney 1994, Parallel Computing 20) on the ring of Patarasu and Yuan (2009, J. Parallel
Distrib. Comput. 69), which no algorithm undercuts in bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: collective -> how often every part of the payload goes round the ring
_PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}


@dataclass(frozen=True)
class Work:
    """What a rank does, of whatever is timed; sums of it are work as well.

    Attributes:
        ring_steps: messages that wait for one another.
        sent_bytes: that this rank sends, and as many that it receives.
        flops: kind of step -> of the model's mathematics.
        crowding: ranks that share a core, at least 1; everything takes so many times as long.
    """

    ring_steps: float = 0.0
    sent_bytes: float = 0.0
    flops: Mapping[str, float] = field(default_factory=dict)
    crowding: float = 1.0


def ring(collective: str, payload_bytes: float, ranks: int, calls: int = 1) -> Work:
    """Of a collective: (n - 1) messages of 1/n of the payload for every pass; nothing on one rank.

    Args:
        payload_bytes: of the whole tensor that is summed or gathered, of all calls.
    """
    passes = _PASSES[collective]
    return Work(calls * passes * (ranks - 1), passes * (ranks - 1) / ranks * payload_bytes)


def together(works: Iterable[Work], flops: Mapping[str, float], crowding: float = 1.0) -> Work:
    """A step: some collectives, and its computation."""
    listed = list(works)
    return Work(sum(w.ring_steps for w in listed), sum(w.sent_bytes for w in listed), dict(flops), crowding)


@dataclass(frozen=True)
class CostModel:
    """Seconds of work, without overlap.

    Attributes:
        latency_seconds: of a step of the ring (alpha).
        bytes_per_second: that a rank sends while it receives as many (beta).
        flops_per_second: kind of step -> rate of a rank that has a core, or a GPU, to itself.
    """

    latency_seconds: float
    bytes_per_second: float
    flops_per_second: Mapping[str, float]

    def communication_seconds(self, work: Work) -> float:
        """Of the collectives alone."""
        return work.crowding * (work.ring_steps * self.latency_seconds + work.sent_bytes / self.bytes_per_second)

    def compute_seconds(self, work: Work) -> float:
        """Of the passes alone."""
        return work.crowding * sum(flops / self.flops_per_second[kind] for kind, flops in work.flops.items())

    def seconds(self, work: Work) -> float:
        """One after the other: the project reduces once, when all gradients are there."""
        return self.communication_seconds(work) + self.compute_seconds(work)


def fit(works: Sequence[Work], seconds: Sequence[float]) -> CostModel:
    """The model that is nearest to what was measured.

    The residuals are relative: of absolute ones the longest step alone would decide, and a latency could be anything.
    No coefficient is negative: a latency of 0, or an infinite rate, is one that the measurements do not tell.

    Raises:
        ValueError: fewer measurements than coefficients.
    """
    from scipy.optimize import nnls

    kinds = sorted({kind for work in works for kind in work.flops})
    columns = np.array([[w.ring_steps, w.sent_bytes, *(w.flops.get(kind, 0.0) for kind in kinds)] for w in works])
    if len(works) < 2 + len(kinds):
        raise ValueError(f"{len(works)} measurements do not tell {2 + len(kinds)} coefficients")
    measured, crowding = np.array(seconds), np.array([work.crowding for work in works])
    columns *= (crowding / measured)[:, None]
    # of one magnitude: a second of latency and a second a byte are nine decimal places apart
    scale = np.abs(columns).max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(columns / scale, np.ones(len(works)))
    latency, per_byte, *per_flop = found / scale
    rates = {kind: _inverse(value) for kind, value in zip(kinds, per_flop, strict=True)}
    return CostModel(float(latency), _inverse(per_byte), rates)


def _inverse(value: float) -> float:
    return float(1 / value) if value > 0 else math.inf
