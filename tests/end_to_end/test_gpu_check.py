"""scripts/gpu_check.py runs every part at toy size on a CPU, so that the first run on a GPU is not its first run."""

import json
from pathlib import Path

import pytest

from tests.launching import real


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 13 parts in processes of their own
def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    # costs 450 CPU seconds, in 30 processes
    output = real.python("scripts/gpu_check.py", "--out", str(tmp_path), timeout_seconds=1800)
    assert "there is no GPU: every part runs at toy size on the CPU" in output
    assert "all goals are met" in output
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [part["problem"] for part in content["parts"] if part["state"] != "done"] == []
    assert len(content["parts"]) == 13
    assert content["device"] == "cpu"
    page = (tmp_path / "gpu_check.md").read_text()
    for part in content["parts"]:
        assert f"| {part['title']} (" in page
    # the figures of benchmarks are complete in the JSON file
    assert all("seconds_per_step" in row for part in content["parts"] if part["name"] == "lm" for row in part["rows"])


def test_results_are_kept_if_the_time_is_over(tmp_path: Path) -> None:
    # costs 15 CPU seconds
    real.python("scripts/gpu_check.py", "--out", str(tmp_path), "--parts", "kernels", "zero", "--minutes", "0.01")
    kernels, zero = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert kernels["state"] == "done"
    assert {"name": "sdpa_flash, 67 tokens", "value": "agrees with fp32", "goal": "agrees", "passed": True} in kernels[
        "results"
    ]
    assert (zero["state"], zero["problem"]) == ("skipped", "no time left")
    assert "skipped: no time left" in (tmp_path / "gpu_check.md").read_text()
