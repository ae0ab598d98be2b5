"""The collectives of `Process`."""

import pytest
import torch

from pico_ds.engine.distributed import Process, collective_timeout
from tests.distributed.workers.time_limits import exceed_time_limit
from tests.launching import run_ranks


def collectives(process: Process) -> dict[str, object]:
    rank = process.rank
    return {
        "sum": process.sum_over_ranks(torch.tensor([1.0, float(rank)])).tolist(),
        "any": [process.any_rank(rank == 1), process.any_rank(False)],
        "from_main": process.from_main(7 + rank),
        "integers": process.gather([rank, -rank]),
        "texts": process.gather_texts("é" * (rank + 1)),
        "lost": process.lost_ranks(),
    }


def test_all_ranks_receive_equal_results() -> None:
    expected = {
        "sum": [3.0, 3.0],
        "any": [True, False],
        "from_main": 7,
        "integers": [[0, 0], [1, -1], [2, -2]],
        "texts": ["é", "éé", "ééé"],
        "lost": [],
    }
    assert run_ranks(collectives, 3) == [expected] * 3


def test_time_limit_applies_to_the_groups_of_deepspeed() -> None:
    results = run_ranks(exceed_time_limit, 2)
    for result in results:
        assert len(result["limits"]) >= 2
        assert set(result["limits"]) == {4000.0}
    assert "Timed out" in results[0]["error"], results[0]["error"]


@pytest.mark.parametrize(("hang_timeout_seconds", "expected"), [(10.0, 1800.0), (1800.0, 3600.0), (7200.0, 14400.0)])
def test_watchdog_ends_a_job_before_the_limit_of_collectives(hang_timeout_seconds: float, expected: float) -> None:
    assert collective_timeout(hang_timeout_seconds).total_seconds() == expected
