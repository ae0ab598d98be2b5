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
def test_two_ranks_equal_a_plain_loop(errors: dict[str, dict[str, float]], learner: str) -> None:
    """Three AdamW steps with clipping under ZeRO 1, 2 and 3, with uneven and empty shares of the ranks."""
    assert errors[learner].keys() == {"1", "2", "3"}
    assert max(errors[learner].values()) <= 1e-6, errors[learner]


def test_every_learner_has_a_case() -> None:
    assert {*CASES, "ar"} == set(LEARNERS)
