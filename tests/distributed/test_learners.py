"""Every learner on two gloo ranks."""

import pytest

from pico_ds.meta.learners import LEARNERS
from tests.distributed.workers.learners import CASES, learner_errors
from tests.launching import run_ranks


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    results = run_ranks(learner_errors, 2)
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize("learner", CASES)
def test_two_ranks_equal_one_plain_loop(errors: dict[str, dict[str, float]], learner: str) -> None:
    """Uneven and empty shares, AdamW with clipping: after three steps the weights are equal under ZeRO 1, 2 and 3."""
    assert errors[learner].keys() == {"1", "2", "3"}
    assert max(errors[learner].values()) <= 1e-6, errors[learner]


def test_every_learner_is_here() -> None:
    assert {*CASES, "ar"} == set(LEARNERS)
