"""Tests the cost model against closed forms, and the fit against data that a model generated."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmarks.cost_model import CostModel, Work, combine, fit, ring

MODEL = CostModel(20e-6, 1.5e9, {"ar": 40e9, "fomaml": 30e9})
#: work of typical measurements: two collectives with several sizes, and both kinds of steps
WORKS = [ring(name, size, 2) for name in ("all-reduce", "all-gather") for size in (4e3, 256e3, 4e6, 45e6)]
WORKS += [
    combine([ring("all-reduce", 45e6, n), ring("all-gather", 45e6, n)], {kind: flops / n}, crowding)
    for n, crowding in ((1, 1.0), (2, 1.0), (4, 2.0))
    for kind, flops in (("ar", 30e9), ("fomaml", 90e9))
]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 512])
def test_ring_all_reduce_costs_a_reduce_scatter_and_an_all_gather(ranks: int) -> None:
    """In an all-reduce every rank sends 2 (n - 1) / n of the payload."""
    whole = ring("all-reduce", 1000.0, ranks)
    assert whole.sent_bytes == pytest.approx(2 * (ranks - 1) / ranks * 1000)
    assert whole.ring_steps == 2 * (ranks - 1)
    halves = combine([ring("reduce-scatter", 1000.0, ranks), ring("all-gather", 1000.0, ranks)], {})
    assert (halves.ring_steps, halves.sent_bytes) == (whole.ring_steps, pytest.approx(whole.sent_bytes))


def test_step_seconds_match_a_hand_calculation() -> None:
    step = combine([ring("all-reduce", 3e9, 4, calls=10)], {"ar": 80e9}, crowding=2.0)
    # 60 messages of 20 us, 4.5 GB at 1.5 GB/s, 2 s of computation, two ranks per core
    assert MODEL.communication_seconds(step) == pytest.approx(2 * (60 * 20e-6 + 3.0))
    assert MODEL.compute_seconds(step) == pytest.approx(2 * 2.0)
    assert MODEL.seconds(step) == pytest.approx(2 * (60 * 20e-6 + 3.0 + 2.0))


def test_single_rank_has_no_communication() -> None:
    step = combine([ring("all-reduce", 1e12, 1, calls=100)], {"ar": 40e9})
    assert MODEL.communication_seconds(step) == 0
    assert MODEL.seconds(step) == pytest.approx(1.0)


@given(st.integers(1, 64), st.integers(1, 64), st.floats(1, 1e10), st.floats(1, 1e10))
def test_communication_time_does_not_decrease_with_ranks_or_bytes(
    ranks: int, others: int, size: float, other: float
) -> None:
    few, many = sorted([ranks, others])
    small, large = sorted([size, other])
    seconds = MODEL.communication_seconds
    assert seconds(ring("all-reduce", small, few)) <= seconds(ring("all-reduce", small, many))
    assert seconds(ring("all-reduce", small, few)) <= seconds(ring("all-reduce", large, few))
    assert seconds(ring("all-gather", small, few)) <= seconds(ring("all-reduce", small, few))


def test_fit_recovers_the_coefficients_of_exact_measurements() -> None:
    found = fit(WORKS, [MODEL.seconds(work) for work in WORKS])
    assert found.latency_seconds == pytest.approx(MODEL.latency_seconds, rel=1e-6)
    assert found.bytes_per_second == pytest.approx(MODEL.bytes_per_second, rel=1e-6)
    assert found.flops_per_second == pytest.approx(MODEL.flops_per_second, rel=1e-6)


def test_fit_is_stable_under_a_few_percent_of_noise() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.03, len(WORKS)))
    found = fit(WORKS, [MODEL.seconds(work) * factor for work, factor in zip(WORKS, noise, strict=True)])
    assert found.latency_seconds == pytest.approx(MODEL.latency_seconds, rel=0.1)
    assert found.bytes_per_second == pytest.approx(MODEL.bytes_per_second, rel=0.1)
    assert found.flops_per_second == pytest.approx(MODEL.flops_per_second, rel=0.1)


def test_fit_without_communication_determines_only_the_flop_rates() -> None:
    works = [Work(flops={"ar": flops}) for flops in (1e9, 2e9, 4e9)]
    found = fit(works, [work.flops["ar"] / 5e9 for work in works])
    assert found.flops_per_second["ar"] == pytest.approx(5e9)
    assert (found.latency_seconds, found.bytes_per_second) == (0.0, math.inf)


def test_fit_fails_with_fewer_measurements_than_coefficients() -> None:
    with pytest.raises(ValueError, match="2 measurements do not determine 3 coefficients"):
        fit([Work(flops={"ar": 1.0})] * 2, [1.0, 1.0])
