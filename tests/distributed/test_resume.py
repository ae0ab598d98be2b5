"""M ranks resume under one ZeRO stage from a checkpoint that N ranks saved under another."""

from pathlib import Path

import pytest

from tests.distributed.workers.resume import CONFIGS, WORLDS, resume_all, save_and_resume
from tests.launching import run_ranks

Saves = tuple[Path, dict[int, list[dict[str, bool]]]]


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Saves:
    directory = tmp_path_factory.mktemp("saved")
    return directory, {world: run_ranks(save_and_resume, world, str(directory)) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
def test_resume_at_the_same_world_size_and_stage_is_bit_identical(saves: Saves, world: int) -> None:
    """Covers fp32 under all stages and offloads, and bf16 under stages 1 to 3."""
    for result in saves[1][world]:
        assert len(result) == len(CONFIGS) + 3
        assert all(result.values()), result


@pytest.mark.parametrize("world", WORLDS)
def test_resume_at_any_world_size_and_stage_matches_a_plain_loop(saves: Saves, world: int) -> None:
    for result in run_ranks(resume_all, world, str(saves[0])):
        assert len(result) == len(WORLDS) * len(CONFIGS)
        assert all(error <= 1e-6 for error in result.values()), result
