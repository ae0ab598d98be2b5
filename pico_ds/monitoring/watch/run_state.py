"""Determines the state of a run from its status file, its process, and the time since its last metrics."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pico_ds.config import RunConfig
from pico_ds.monitoring.watch.metrics_tail import MetricsTail
from pico_ds.runs.run_directory import JOB_FILE_NAME, RunDirectory
from pico_ds.runs.run_status import RunStatus, job_nonce

State = Literal["starting", "running", "evaluating", "stalled", "finished", "stopped", "failed", "died", "silent"]

#: a shorter time without metrics is normal, because a save or a compilation may delay them [s]
_SHORT_SILENCE_SECONDS = 120.0
#: a run is silent after this many usual intervals without metrics
_LONG_SILENCE_LINES = 10
#: a start that has not written its status file by then has failed [s]
_START_SECONDS = 900.0


@dataclass(frozen=True)
class RunState:
    """The state of a run, and the evidence for it."""

    state: State
    reason: str


def run_state_of(run: RunDirectory, config: RunConfig | None, tail: MetricsTail) -> RunState:
    """Return the state of a run.

    Args:
        config: configuration of the run; None if the run has not written it yet.
    """
    status, now = RunStatus.read(run), time.time()
    if status is not None and job_nonce(run) != status.nonce:
        claim_age = now - (run.path / JOB_FILE_NAME).stat().st_mtime
        # an older claim without a status belongs to a start that failed early, so the old status still holds
        if claim_age < _START_SECONDS:
            return RunState("starting", f"restarted {duration(claim_age)} ago")
    if status is None:
        return _state_without_status(run, config, tail, now)
    when = f"{duration(now - status.at)} ago"
    if status.state != "running":
        return RunState(status.state, f"{when}: {status.reason}" if status.reason else when)
    # if rank 0 was killed, another rank has written the failure summary
    if (failed := _modified(newest_summary(run))) is not None and failed > status.at:
        return RunState("failed", f"{duration(now - failed)} ago")
    if status.is_here and not status.is_alive:
        return RunState("died", f"process {status.pid} ended without a status, {_last_write(tail, now)}")
    where = f"process {status.pid} on {status.host}"
    if config is not None and (silent := _seconds_silent_if_too_long(config, tail, status.at, now)) is not None:
        if last_log_line(run).startswith("evaluating") and silent < config.training.hang_timeout_seconds:
            return RunState("evaluating", f"for {duration(silent)}; {where}")
        if status.is_here:
            return RunState("stalled", f"no metrics for {duration(silent)}, but {where} is alive")
        return RunState(
            "silent", f"no metrics for {duration(silent)}: stalled or dead; on {status.host}, check {where}"
        )
    return RunState("running", f"for {duration(now - status.at)}, {where}")


def _state_without_status(run: RunDirectory, config: RunConfig | None, tail: MetricsTail, now: float) -> RunState:
    """Return the state of a run without a status file."""
    if config is None or tail.written_at is None:
        return RunState("starting", "no metrics yet")
    if tail.step >= config.training.max_steps and checkpoint_step(run) == tail.step:
        return RunState("finished", _last_write(tail, now))
    if _seconds_silent_if_too_long(config, tail, tail.written_at, now) is not None:
        return RunState("silent", f"{_last_write(tail, now)}: stalled, stopped or dead")
    return RunState("running", _last_write(tail, now))


def checkpoint_step(run: RunDirectory) -> int | None:
    """Return the step of the newest checkpoint, or None if there is none."""
    try:
        return int((run.checkpoints / "latest").read_text(encoding="utf-8").strip().removeprefix("step_"))
    except (OSError, ValueError):
        return None


def newest_summary(run: RunDirectory) -> Path | None:
    """Return the failure summary of the last failed start, or None if there is none."""
    return max(run.failures.glob("*/summary.txt"), default=None)


def duration(seconds: float) -> str:
    """Return seconds as text with at most two units, such as "2 h 5 min"."""
    seconds = max(0, round(seconds))
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller_size} {smaller}"
    return f"{seconds} s"


def _seconds_silent_if_too_long(config: RunConfig, tail: MetricsTail, since: float, now: float) -> float | None:
    """Return the seconds since the last metrics if that is long for this run, otherwise None."""
    silent = now - max(since, tail.written_at or since)
    _, seconds_per_step = tail.newest.get("seconds_per_step", (0, 0.0))
    usual = seconds_per_step * config.monitoring.log_every_n_steps
    # before the first line, and after a resume, the usual interval is unknown
    limit = max(_SHORT_SILENCE_SECONDS, _LONG_SILENCE_LINES * usual)
    return silent if silent > limit else None


def _last_write(tail: MetricsTail, now: float) -> str:
    return "no metrics yet" if tail.written_at is None else f"last metrics {duration(now - tail.written_at)} ago"


def last_log_line(run: RunDirectory) -> str:
    """Return the message of the last line of train.log; empty if there is none."""
    try:
        with run.train_log.open("rb") as file:
            file.seek(max(0, run.train_log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1].split(" ", 3)[-1] if lines else ""


def _modified(path: Path | None) -> float | None:
    try:
        return None if path is None else path.stat().st_mtime
    except FileNotFoundError:
        return None
