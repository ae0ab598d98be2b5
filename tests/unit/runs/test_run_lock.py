"""The choice of the run directory, and its lock against other jobs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.config import CheckpointingConfig, ConfigError
from pico_ds.engine.distributed import Process
from pico_ds.runs import run_lock
from pico_ds.runs.job_identity import JobIdentity
from pico_ds.runs.run_lock import RunLock, lock_run_directory
from tests.launching import REPOSITORY

SINGLE_RANK = Process(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def claim(parent: Path, **settings: object) -> RunLock:
    """Lock the run directory as a new process would, after releasing the lock of an earlier call."""
    for lock in run_lock._locks:
        lock.release()
    config = CheckpointingConfig.model_validate({"runs_dir": str(parent), **settings})
    return lock_run_directory(config, "demo", SINGLE_RANK)


def name_of(lock: RunLock) -> str:
    return lock.run.path.name


@pytest.fixture(params=["torchrun", "SLURM"])
def restart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Return a function that sets the environment of a job at its first start (count 0) or at a restart."""

    def set_job(job: str, count: int) -> None:
        if request.param == "torchrun":
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
            monkeypatch.setattr("os.getppid", lambda: {"mine": os.getpid(), "another": 1}[job])
        else:
            monkeypatch.setenv("SLURM_JOB_ID", job)
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))

    return set_job


def make_run(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "training_config.yaml").write_text("{}")
    return path


def test_unnamed_runs_are_numbered(tmp_path: Path) -> None:
    make_run(tmp_path / "demo-007")
    assert [name_of(claim(tmp_path)) for _ in range(2)] == ["demo-008", "demo-009"]


def test_restarted_job_reuses_its_run(tmp_path: Path, restart: Callable[[str, int], None]) -> None:
    restart("mine", 0)
    first = claim(tmp_path)
    assert (name_of(first), first.first_save_number) == ("demo-001", None)
    restart("another", 0)
    assert name_of(claim(tmp_path)) == "demo-002"
    restart("mine", 1)
    for _ in range(2):
        again = claim(tmp_path)
        assert (name_of(again), again.first_save_number) == ("demo-001", 1)
        restart("mine", 2)
    restart("another", 1)
    assert name_of(claim(tmp_path)) == "demo-002"


def test_restarted_job_without_a_run_creates_one(tmp_path: Path, restart: Callable[[str, int], None]) -> None:
    """The job failed before it created a run, so the newest run belongs to another job."""
    restart("another", 0)
    claim(tmp_path)
    restart("mine", 1)
    lock = claim(tmp_path)
    assert (name_of(lock), lock.first_save_number) == ("demo-002", None)


def test_restarted_job_does_not_overwrite_another_run(tmp_path: Path, restart: Callable[[str, int], None]) -> None:
    restart("mine", 1)
    make_run(tmp_path / "named")
    with pytest.raises(ConfigError, match="already contains a run, which is never overwritten"):
        claim(tmp_path, run_name="named", resume="never")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="does not contain a run"):
        claim(tmp_path, run_name="thesis")


def test_restarted_job_reuses_its_named_run(tmp_path: Path, restart: Callable[[str, int], None]) -> None:
    restart("mine", 0)
    first = claim(tmp_path, run_name="named", resume="never")
    (first.run.path / "training_config.yaml").write_text("{}")
    CheckpointStore(first.run.checkpoints).directory.mkdir()
    restart("mine", 1)
    assert claim(tmp_path, run_name="named", resume="never").first_save_number == 1


def test_second_start_in_one_slurm_allocation_creates_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert [name_of(claim(tmp_path)) for _ in range(2)] == ["demo-001", "demo-002"]


def test_job_is_recognized_by_one_surviving_agent(tmp_path: Path) -> None:
    """One of two nodes was replaced."""
    before, now, other = (
        JobIdentity(agents=agents, slurm_job=None, slurm_restarts=0, nonce=1)
        for agents in ({(1, 2, 3), (4, 5, 6)}, {(4, 5, 6), (7, 8, 9)}, {(7, 8, 9)})
    )
    assert now.continues(before)
    assert not other.continues(before)
    assert not now.continues(None)


def test_directory_that_is_not_shared_by_all_nodes_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "_SHARED_FILE_SECONDS", 0.2)
    monkeypatch.setattr(JobIdentity, "write", lambda *_: None)
    with pytest.raises(ConfigError, match="is not the same directory on every node"):
        claim(tmp_path, run_name="mine")


@pytest.mark.parametrize("resume", ["auto", 40])
def test_named_run_is_reused_to_resume(tmp_path: Path, resume: object) -> None:
    path = make_run(tmp_path / "mine")
    assert claim(tmp_path, run_name="mine", resume=resume).run.path == path


def test_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    with pytest.raises(ConfigError, match="already contains a run, which is never overwritten"):
        claim(tmp_path, run_name="mine", resume="never")
    with pytest.raises(ConfigError, match="already contains a run"):
        claim(tmp_path, run_name="mine", resume=str(tmp_path / "other" / "checkpoints" / "step_4"))


def test_directory_with_other_files_fails(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty and does not contain a run"):
        claim(tmp_path, run_name="mine")


def test_second_job_on_a_locked_run_fails(tmp_path: Path) -> None:
    claim(tmp_path, run_name="mine")
    code = f"""from pathlib import Path
from tests.unit.runs.test_run_lock import claim
claim(Path({str(tmp_path)!r}), run_name="mine")"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "is in use by another job" in result.stderr


def test_error_names_a_directory_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"checkpointing\.runs_dir: cannot write to .*file \((File exists|Not a directory)\)"
    ):
        claim(tmp_path / "file", run_name="mine")


def test_directory_left_by_a_full_disk_is_reused(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    (run / ".lock").touch()
    (run / "..launch.json.partial").touch()
    config = CheckpointingConfig(runs_dir=str(tmp_path), run_name="mine")
    assert lock_run_directory(config, "demo", SINGLE_RANK).run.path == run
