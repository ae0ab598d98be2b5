"""Files on a full disk. The tests mount a file system of 16 KiB, which needs root."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pico_ds.file_writing import RetryingFile, may_exist, replace_text
from pico_ds.monitoring.run_log import logger
from pico_ds.monitoring.trackers import JsonLinesTracker
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.runs.run_status import RunStatus
from pico_ds.training.callbacks.evaluation import Evaluation


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk: Path) -> Callable[[], None]:
    """Fill the disk. Returns a function that frees the space again."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * 1024)
            except OSError:
                return path.unlink


def test_patient_file_loses_and_repeats_no_text_on_a_full_disk(disk: Path) -> None:
    problems: list[OSError] = []
    file = RetryingFile(disk / "log", problems.append)
    file.append("first\n")
    free_space = fill(disk)
    expected = "first\n"
    for number in range(3):
        text = str(number) * 3000 + "\n"
        file.append(text)
        expected += text
    assert len(problems) == 1
    assert problems[0].filename == str(disk / "log")
    with pytest.raises(OSError, match="No space left"):
        file.sync()
    free_space()
    file.append("last\n")
    file.sync()
    assert (disk / "log").read_text() == expected + "last\n"
    fill(disk)
    file.append("x" * 10_000)
    assert len(problems) == 2
    assert file.close() > 0


def test_metrics_are_written_after_a_full_disk_with_one_warning(
    disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    tracker = JsonLinesTracker(disk / "logs" / "metrics.jsonl")
    free_space = fill(disk)
    for step in range(1, 400):
        tracker.log(step, {"ar/loss": 1.0})
    assert caplog.text.count("metrics stay in memory") == 1
    free_space()
    tracker.close()
    assert (disk / "logs" / "metrics.jsonl").read_text().count("\n") == 399


def test_run_status_is_updated_on_a_full_disk(disk: Path) -> None:
    run = RunDirectory(disk)
    RunStatus.write(run, "running")
    fill(disk)
    RunStatus.write(run, "failed", "OSError: no space left")
    status = RunStatus.read(run)
    assert status is not None
    assert (status.state, status.reason) == ("failed", "OSError: no space left")
    assert "Traceback" not in run.status.read_text()


def test_evaluation_result_is_written_when_space_is_free_again(
    disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Result:
        step = 3

        def write(self, directory: Path) -> None:
            replace_text(directory / "step_3.json", "x" * 5000)

    evaluation = Evaluation(None, dict, RunDirectory(disk), [], lambda: True)  # type: ignore[arg-type]
    monkeypatch.setattr(logger, "propagate", True)
    free_space = fill(disk)
    evaluation._unwritten.append(Result())  # type: ignore[arg-type]
    evaluation._write()
    assert "the evaluation of step 3 cannot be written yet" in caplog.text
    assert "free space" in caplog.text
    free_space()
    evaluation.on_exit()
    assert (disk / "eval_results" / "step_3.json").stat().st_size == 5000


def test_write_error_names_the_file(disk: Path) -> None:
    fill(disk)
    with pytest.raises(OSError) as caught:
        replace_text(disk / "status.json", "x" * 5000)
    assert caught.value.filename == str(disk / ".status.json.partial")


def test_path_with_unknown_state_may_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not may_exist(tmp_path / "none")
    (tmp_path / "circle").symlink_to("circle")
    assert may_exist(tmp_path / "circle")

    def stale(path: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "lstat", stale)
    assert may_exist(tmp_path / "none")
