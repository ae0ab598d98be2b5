"""The collectives of `Process`."""

import torch

from pico_ds.engine.distributed import Process
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
