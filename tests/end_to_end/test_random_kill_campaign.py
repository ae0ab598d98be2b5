"""A short random-kill campaign. `python -m tests.random_kill_campaign` runs the long one."""

from pathlib import Path

import pytest

from tests.launching import Launcher, real, warm
from tests.random_kill_campaign import run_campaign


@pytest.mark.parametrize(
    ("launcher", "kills"),
    [(warm, 2), pytest.param(warm, 6, marks=pytest.mark.slow), pytest.param(real, 3, marks=pytest.mark.slow)],
    ids=["warm", "more", "real"],
)
def test_few_kills_lose_no_checkpoint(launcher: Launcher, kills: int, tmp_path: Path) -> None:
    counts = run_campaign(kills=kills, seed=1, directory=tmp_path, max_steps=60, launcher=launcher)
    assert counts["finished runs, bit-identical"] >= 1
