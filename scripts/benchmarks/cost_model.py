"""A simple cost model of a step: latency of a ring, plus bytes over bandwidth, plus FLOPs over FLOP/s.

It applies Hockney's model of a message (Hockney 1994, Parallel Computing 20) to the ring of Patarasu and Yuan (2009,
J. Parallel Distrib. Comput. 69). No algorithm sends fewer bytes than this ring.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: collective -> number of times that every part of the payload travels around the ring
_PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}


@dataclass(frozen=True)
class Work:
    """The work of one rank in a collective or a step.

    Attributes:
        ring_steps: number of consecutive messages, each of which waits for the one before.
        sent_bytes: bytes that this rank sends, and also receives.
        flops: kind of step -> FLOPs of the model's mathematics.
        crowding: number of ranks that share a core, at least 1. All times are multiplied by this number.
    """

    ring_steps: float = 0.0
    sent_bytes: float = 0.0
    flops: Mapping[str, float] = field(default_factory=dict)
    crowding: float = 1.0


def ring(collective: str, payload_bytes: float, ranks: int, calls: int = 1) -> Work:
    """Return the work of a collective: every pass sends (n - 1) messages, each with 1/n of the payload, for n ranks.

    A single rank has no work.

    Args:
        payload_bytes: bytes of the whole tensor that is summed or gathered, added over all calls.
    """
    passes = _PASSES[collective]
    return Work(calls * passes * (ranks - 1), passes * (ranks - 1) / ranks * payload_bytes)


def combine(works: Iterable[Work], flops: Mapping[str, float], crowding: float = 1.0) -> Work:
    """Return the work of a step, which consists of collectives and computation."""
    listed = list(works)
    return Work(sum(w.ring_steps for w in listed), sum(w.sent_bytes for w in listed), dict(flops), crowding)


@dataclass(frozen=True)
class CostModel:
    """Predicts the seconds of work, without overlap of communication and computation.

    Attributes:
        latency_seconds: latency of one step of the ring (alpha).
        bytes_per_second: rate at which a rank sends while it receives as much (beta).
        flops_per_second: kind of step -> FLOP/s of a rank that has a core, or a GPU, to itself.
    """

    latency_seconds: float
    bytes_per_second: float
    flops_per_second: Mapping[str, float]

    def communication_seconds(self, work: Work) -> float:
        """Return the seconds of the collectives."""
        return work.crowding * (work.ring_steps * self.latency_seconds + work.sent_bytes / self.bytes_per_second)

    def compute_seconds(self, work: Work) -> float:
        """Return the seconds of the forward and backward passes."""
        return work.crowding * sum(flops / self.flops_per_second[kind] for kind, flops in work.flops.items())

    def seconds(self, work: Work) -> float:
        """Return the seconds of communication plus computation.

        They do not overlap, because training reduces the gradients once, after all of them are computed.
        """
        return self.communication_seconds(work) + self.compute_seconds(work)


def fit(works: Sequence[Work], seconds: Sequence[float]) -> CostModel:
    """Fit a cost model to measurements by least squares.

    The residuals are relative. With absolute residuals, the longest steps would dominate the fit and leave the latency
    undetermined. No coefficient is negative. A latency of 0 or an infinite rate means that the measurements do not
    determine the coefficient.

    Args:
        works: the work of each measurement.
        seconds: the measured seconds of each measurement.

    Raises:
        ValueError: there are fewer measurements than coefficients.
    """
    from scipy.optimize import nnls

    kinds = sorted({kind for work in works for kind in work.flops})
    columns = np.array([[w.ring_steps, w.sent_bytes, *(w.flops.get(kind, 0.0) for kind in kinds)] for w in works])
    if len(works) < 2 + len(kinds):
        raise ValueError(f"{len(works)} measurements do not determine {2 + len(kinds)} coefficients")
    measured, crowding = np.array(seconds), np.array([work.crowding for work in works])
    columns *= (crowding / measured)[:, None]
    # scale the columns to one magnitude, because latency and seconds per byte differ by nine orders of magnitude
    scale = np.abs(columns).max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(columns / scale, np.ones(len(works)))
    latency, per_byte, *per_flop = found / scale
    rates = {kind: _inverse(value) for kind, value in zip(kinds, per_flop, strict=True)}
    return CostModel(float(latency), _inverse(per_byte), rates)


def _inverse(value: float) -> float:
    return float(1 / value) if value > 0 else math.inf
