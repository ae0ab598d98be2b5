"""The crash campaign in its short form; the long one is `python -m tests.crash_campaign`."""

from pathlib import Path

from tests.crash_campaign import run_campaign


def test_nothing_is_lost_by_a_few_kills(tmp_path: Path) -> None:
    counts = run_campaign(kills=4, seed=1, directory=tmp_path, max_steps=60)
    assert counts["runs brought to their end, bit-identical"] >= 1
