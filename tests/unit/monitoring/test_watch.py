"""The displayed state of a run that is starting, running or finished, and the command on a terminal."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pico_ds.config import ConfigError, dump_config, parse_config
from pico_ds.monitoring.watch.run_state import duration
from pico_ds.monitoring.watch.run_view import RunView
from pico_ds.monitoring.watch.watch_screen import frame, sparkline, watch
from pico_ds.runs.run_directory import JOB_FILE_NAME, RunDirectory
from pico_ds.runs.run_status import RunStatus
from tests.launching import REPOSITORY

DEAD_PID = 2**22 + 1


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of 100 steps that has not logged anything."""
    run = RunDirectory(tmp_path / "runs" / "demo-001")
    run.logs.mkdir(parents=True)
    run.training_config.write_text(dump_config(parse_config("{training: {max_steps: 100}}")))
    run.environment.write_text(json.dumps({"world_size": 8, "device": "NVIDIA H100"}))
    return run


def add_lines(run: RunDirectory, first: int, last: int, **others: Any) -> None:
    with run.metrics.open("a") as file:
        for step in range(first, last + 1, 10):
            line = {"step": step, "lr": 0.1, "ar/loss": 10 - step / 20, "seconds_per_step": 2.0, "skipped_steps": 3}
            line |= {"meta/query_loss": 1.5, "meta/query_accuracy": 0.625, "meta/query_loss_before": 1.6}
            line |= {"meta/query_loss_after": 1.4, "meta/support_accuracy_before": 0.5}
            line |= {"meta/support_accuracy_after": 0.75, "tokens_per_second": 12345.6, "tasks_per_second": 7.0}
            line |= {"data_wait_fraction": 0.125, "peak_memory_gib": 61.5, "model_flops_utilization": 0.412}
            file.write(json.dumps(line | others) + "\n")


def add_evaluation(run: RunDirectory, step: int) -> None:
    run.eval_results.mkdir(exist_ok=True)
    summary = {"fim": [{"mean": 0.4, "half_width": None}, {"mean": 0.5, "half_width": 0.03}]}
    content = {"step": step, "validation_loss": 5.0 - step / 100, "few_shot_summary": summary}
    (run.eval_results / f"step_{step}.json").write_text(json.dumps(content))


def add_checkpoint(run: RunDirectory, step: int) -> None:
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "latest").write_text(f"step_{step}\n")


def write_status(run: RunDirectory, **changes: Any) -> None:
    """Write the status of the run as another process would."""
    RunStatus.write(run, "running")
    status = RunStatus.read(run)
    assert status is not None
    run.status.write_text(status.model_copy(update=changes).model_dump_json())


def age(path: Path, seconds: float) -> None:
    modified = time.time() - seconds
    os.utime(path, (modified, modified))


def rendered_frame(run: RunDirectory, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, height=40)
    console.print(frame(RunView(run.path)))
    return console.file.getvalue()


def state(run: RunDirectory) -> str:
    return RunView(run.path).run_state.state


def test_frame_shows_state_metrics_and_checkpoint(run: RunDirectory) -> None:
    RunStatus.write(run, "running")
    add_lines(run, 10, 50)
    add_evaluation(run, 0)
    add_evaluation(run, 40)
    add_checkpoint(run, 40)
    age(run.checkpoints / "latest", 200)
    shown = rendered_frame(run)
    for expected in (
        "running  for ",
        "step 50 of 100  50.0 %  ETA 1 min 40 s",
        "AR loss             7.500  █▆",
        "query loss          1.500",
        "query accuracy     62.5 %",
        "support adapted  accuracy 50.0 % -> 75.0 %",
        "query adapted    loss 1.600 -> 1.400",
        "step 0: val. loss 5.000, fim 40.0 -> 50.0 ± 3.0 %",
        "step 40: val. loss 4.600",
        "12,346 tokens/s, 7.0 tasks/s, 2 s per step, MFU 41.2 %",
        "data wait 12.5 % of the time, peak memory 61.50 GiB (rank 0)",
        "skipped steps    3",
        "8 on NVIDIA H100",
        "checkpoint       step_40, 3 min 20 s ago",
        "last metrics     0 s ago",
    ):
        assert expected in shown, f"{expected!r} is not in\n{shown}"
    assert max(map(len, rendered_frame(run, width=50).splitlines())) == 50


def test_run_without_metrics_is_starting(run: RunDirectory) -> None:
    assert state(run) == "starting"
    assert "step 0 of 100" in rendered_frame(run)
    run.training_config.unlink()
    (run.path / JOB_FILE_NAME).write_text("{}")
    run.environment.unlink()
    assert state(run) == "starting"
    assert "last metrics  none yet" in rendered_frame(run)


def test_state_follows_status_process_and_silence(run: RunDirectory) -> None:
    """One run goes through all states."""
    RunStatus.write(run, "running")
    add_lines(run, 10, 50)
    assert state(run) == "running"
    # the limit is ten times the usual interval between lines, which is 10 steps of 2 s
    now = time.time()
    write_status(run, at=now - 1000)
    age(run.metrics, 190)
    assert state(run) == "running"
    age(run.metrics, 210)
    assert state(run) == "stalled"
    run.train_log.write_text("2026-11-25 03:27:50,902 INFO evaluating step 50\n")
    assert state(run) == "evaluating"
    run.train_log.write_text("2026-11-25 03:27:50,902 INFO step 50/100\n")
    write_status(run, at=now - 1000, host="another")
    assert state(run) == "silent"
    write_status(run, at=now - 1000, pid=DEAD_PID)
    assert state(run) == "died"
    # another process has the process id now
    write_status(run, at=now - 1000, process_started=1.0)
    assert state(run) == "died"
    (run.failures / "20261125-033000").mkdir(parents=True)
    summary = run.failures / "20261125-033000" / "summary.txt"
    summary.write_text("the run failed\n  first      rank 1 died without an error message\n")
    assert state(run) == "failed"
    assert "first      rank 1 died without an error message" in rendered_frame(run)
    (run.path / JOB_FILE_NAME).write_text('{"nonce": 2}')
    assert state(run) == "starting"
    # the new start failed early, so the old status is valid
    age(run.path / JOB_FILE_NAME, 1000)
    assert state(run) == "failed"
    for name in ("running", "finished", "stopped", "failed"):
        RunStatus.write(run, name, "SIGTERM")
        assert state(run) == name
    assert "ago: SIGTERM" in rendered_frame(run)


def test_state_of_a_run_without_a_status_file(run: RunDirectory) -> None:
    """Earlier versions did not write a status file."""
    add_lines(run, 10, 50)
    assert state(run) == "running"
    age(run.metrics, 1000)
    assert state(run) == "silent"
    add_lines(run, 60, 100)
    add_checkpoint(run, 100)
    assert state(run) == "finished"


def test_view_reads_changed_files_again(run: RunDirectory) -> None:
    add_lines(run, 10, 20)
    add_evaluation(run, 0)
    (run.eval_results / "step_10.json").write_text('{"step": 10, "valid')
    view = RunView(run.path)
    assert sorted(view.evaluations) == [0]
    add_lines(run, 30, 30, skipped_steps=5)
    add_evaluation(run, 10)
    run.training_config.write_text(dump_config(parse_config("{training: {max_steps: 300}}")))
    view.refresh()
    assert sorted(view.evaluations) == [0, 10]
    assert (view.tail.step, view.newest("skipped_steps")) == (30, 5)
    assert view.config is not None
    assert view.config.training.max_steps == 300


def test_path_that_is_not_a_run_directory_fails(run: RunDirectory, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "no such directory; give the directory of a run"),
        (tmp_path / "runs", "is not a run directory: it has no training_config.yaml; it contains the runs demo-001"),
        (run.logs, "is not a run directory: it has no training_config.yaml; give the directory of a run"),
    ):
        with pytest.raises(ConfigError, match=message):
            RunView(path)


@pytest.mark.parametrize(("values", "blocks"), [([], ""), ([1.0], "▁"), ([0, 7, 3.5], "▁█▅"), ([2, 2], "▁▁")])
def test_sparkline_scales_values_to_blocks(values: list[float], blocks: str) -> None:
    assert sparkline(values, 10) == blocks


def test_sparkline_averages_values_to_fit_the_width() -> None:
    assert sparkline([float(number) for number in range(1000)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 2.0], 8, ascii_only=True) == "_#"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (90000, "1 d 1 h")]
)
def test_duration_uses_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_watch_prints_one_frame_without_a_terminal(run: RunDirectory) -> None:
    console = Console(file=io.StringIO(), width=80)
    watch(RunView(run.path), console, 1000.0, once=False)
    assert console.file.getvalue().count("demo-001") == 1
    assert "\x1b" not in console.file.getvalue()


def start_on_terminal(run: RunDirectory, *options: str) -> tuple["subprocess.Popen[bytes]", int]:
    terminal, process_side = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "scripts/watch.py", str(run.path), *options]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdin=process_side,
        stdout=process_side,
        stderr=process_side,
        env=variables,
        start_new_session=True,
    )
    os.close(process_side)
    return process, terminal


def test_watch_updates_on_a_terminal_until_ctrl_c(run: RunDirectory) -> None:
    add_lines(run, 10, 20)
    process, terminal = start_on_terminal(run, "--every", "0.2")
    seen = b""

    def wait_for(condition: Callable[[], bool]) -> None:
        nonlocal seen
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, seen.decode(errors="replace")
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:  # the other end is closed
                    return

    try:
        wait_for(lambda: b"step 20 of 100" in seen)
        add_lines(run, 30, 30)
        wait_for(lambda: b"step 30 of 100" in seen)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: process.poll() is not None and not select.select([terminal], [], [], 0.5)[0])
        assert process.wait(10) == 0
    finally:
        process.kill()
        os.close(terminal)
    assert b"\x1b[?1049h" in seen, "the alternate screen is used"
    # the cursor and the previous screen are restored, and the last frame remains visible
    assert b"step 30 of 100" in seen.split(b"\x1b[?1049l")[1]
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l")
    assert b"Traceback" not in seen
