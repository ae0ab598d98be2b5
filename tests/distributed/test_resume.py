"""What N ranks saved under one stage, M ranks go on from under another."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.workers.resume import CONFIGS, WORLDS
from tests.launching import run_ranks

WORKER = "tests.distributed.workers.resume"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[dict[str, Any]]]]:
    directory = tmp_path_factory.mktemp("saved")
    return directory, {world: run_ranks(WORKER, world, directory, "save", str(directory)) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
def test_same_world_and_stage_go_on_bit_identically(
    saved: tuple[Path, dict[int, list[dict[str, Any]]]], world: int
) -> None:
    """fp32 under all stages and offloads, bf16 under stages 1 to 3; master weights and moments exact."""
    for result in saved[1][world]:
        assert len(result) == len(CONFIGS) + 3
        assert all(found["exact"] for found in result.values()), result


@pytest.mark.parametrize("world", WORLDS)
def test_any_world_and_stage_go_on_as_one_plain_loop(
    saved: tuple[Path, dict[int, list[dict[str, Any]]]], tmp_path: Path, world: int
) -> None:
    results = run_ranks(WORKER, world, tmp_path, "resume", str(saved[0]))
    for result in results:
        assert len(result) == len(WORLDS) * len(CONFIGS)
        assert all(error <= 1e-6 for error in result.values()), result
