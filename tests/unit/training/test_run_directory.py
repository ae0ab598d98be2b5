"""Which directory a run gets, and what keeps two jobs out of one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pico_ds.config import CheckpointingConfig, ConfigError
from pico_ds.engine.distributed import Process
from pico_ds.training.run_directory import RunDirectory, claim_run_directory, is_restart
from tests.launching import REPOSITORY

ALONE = Process(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def claim(parent: Path, **others: object) -> RunDirectory:
    config = CheckpointingConfig.model_validate({"runs_dir": str(parent), **others})
    return claim_run_directory(config, "demo", is_restart(ALONE), ALONE)


def a_run(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "training_config.yaml").write_text("{}")
    return path


def test_without_a_name_runs_are_numbered(tmp_path: Path) -> None:
    a_run(tmp_path / "demo-007")
    assert [claim(tmp_path).path.name for _ in range(2)] == ["demo-008", "demo-009"]


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restarted_job_takes_its_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    a_run(tmp_path / "demo-001")
    a_run(tmp_path / "demo-002")
    monkeypatch.setenv(variable, "1")
    assert claim(tmp_path).path.name == "demo-002"
    a_run(tmp_path / "named")
    assert claim(tmp_path, run_name="named", resume="never").path.name == "named"


@pytest.mark.parametrize("resume", ["auto", 40])
def test_a_named_run_is_taken_to_resume(tmp_path: Path, resume: object) -> None:
    path = a_run(tmp_path / "mine")
    assert claim(tmp_path, run_name="mine", resume=resume).path == path


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    a_run(tmp_path / "mine")
    with pytest.raises(ConfigError, match="already holds a run, which is not overwritten"):
        claim(tmp_path, run_name="mine", resume="never")
    with pytest.raises(ConfigError, match="already holds a run"):
        claim(tmp_path, run_name="mine", resume=str(tmp_path / "other" / "checkpoints" / "step_4"))


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        claim(tmp_path, run_name="mine")


def test_two_jobs_do_not_share_a_run(tmp_path: Path) -> None:
    claim(tmp_path, run_name="mine")
    code = f"""from pathlib import Path
from tests.unit.training.test_run_directory import claim
claim(Path({str(tmp_path)!r}), run_name="mine")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "is in use by another job" in done.stderr


def test_where_nothing_can_be_written_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"checkpointing\.runs_dir: cannot write to .*file"):
        claim(tmp_path / "file", run_name="mine")
