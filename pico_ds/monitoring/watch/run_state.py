"""Whether a run goes on, from what it said of itself, from its process, and from how long it has been silent."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pico_ds.config import RunConfig
from pico_ds.monitoring.watch.metrics_tail import MetricsTail
from pico_ds.runs.run_directory import JOB_FILE_NAME, RunDirectory
from pico_ds.runs.run_status import RunStatus, job_nonce

State = Literal["starting", "running", "evaluating", "stalled", "finished", "stopped", "failed", "died", "silent"]

#: silence that means nothing yet: a line may wait for a save or a compilation [s]
_SHORT_SILENCE_SECONDS = 120.0
#: silence, in usual distances of two lines, that does
_LONG_SILENCE_LINES = 10
#: a start that has not come to its first word by then has failed before it had one [s]
_START_SECONDS = 900.0


@dataclass(frozen=True)
class RunState:
    """How a run stands, and why that is thought."""

    state: State
    reason: str


def run_state_of(run: RunDirectory, config: RunConfig | None, tail: MetricsTail) -> RunState:
    """Judge a run.

    Args:
        config: None where none is written yet.
    """
    status, now = RunStatus.read(run), time.time()
    if status is not None and job_nonce(run) != status.nonce:
        claimed = now - (run.path / JOB_FILE_NAME).stat().st_mtime
        # one that found something wrong has not become a run
        if claimed < _START_SECONDS:
            return RunState("starting", f"once more, for {duration(claimed)}")
    if status is None:
        return _guess(run, config, tail, now)
    when = f"{duration(now - status.at)} ago"
    if status.state != "running":
        return RunState(status.state, f"{when}: {status.reason}" if status.reason else when)
    # where rank 0 was killed, another rank has said so
    if (failed := _modified(newest_summary(run))) is not None and failed > status.at:
        return RunState("failed", f"{duration(now - failed)} ago")
    if status.is_here and not status.is_alive:
        return RunState("died", f"process {status.pid} has gone without a word, {_silence(tail, now)}")
    where = f"process {status.pid} on {status.host}"
    if config is not None and (silent := _long_silence(config, tail, status.at, now)) is not None:
        if last_words(run).startswith("evaluating") and silent < config.training.hang_timeout_seconds:
            return RunState("evaluating", f"for {duration(silent)}; {where}")
        if status.is_here:
            return RunState("stalled", f"no line for {duration(silent)}, but {where} lives")
        return RunState("silent", f"no line for {duration(silent)}: stalled or dead; only {status.host} sees {where}")
    return RunState("running", f"for {duration(now - status.at)}, {where}")


def _guess(run: RunDirectory, config: RunConfig | None, tail: MetricsTail, now: float) -> RunState:
    """Of a run that says nothing of itself."""
    if config is None or tail.written_at is None:
        return RunState("starting", "there is no line yet")
    if tail.step >= config.training.max_steps and checkpoint_step(run) == tail.step:
        return RunState("finished", _silence(tail, now))
    if _long_silence(config, tail, tail.written_at, now) is not None:
        return RunState("silent", f"{_silence(tail, now)}: stalled, stopped or dead")
    return RunState("running", _silence(tail, now))


def checkpoint_step(run: RunDirectory) -> int | None:
    """Step of the newest checkpoint."""
    try:
        return int((run.checkpoints / "latest").read_text(encoding="utf-8").strip().removeprefix("step_"))
    except (OSError, ValueError):
        return None


def newest_summary(run: RunDirectory) -> Path | None:
    """What the last start that failed has left."""
    return max(run.failures.glob("*/summary.txt"), default=None)


def duration(seconds: float) -> str:
    """Seconds in words, with two units at most."""
    seconds = max(0, round(seconds))
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller_size} {smaller}"
    return f"{seconds} s"


def _long_silence(config: RunConfig, tail: MetricsTail, since: float, now: float) -> float | None:
    """Seconds without a line, where that is long for this run."""
    silent = now - max(since, tail.written_at or since)
    _, seconds_per_step = tail.newest.get("seconds_per_step", (0, 0.0))
    usual = seconds_per_step * config.monitoring.log_every_n_steps
    # before the first line, and after a resume, nothing is known of how long one takes
    limit = max(_SHORT_SILENCE_SECONDS, _LONG_SILENCE_LINES * usual)
    return silent if silent > limit else None


def _silence(tail: MetricsTail, now: float) -> str:
    return "no line yet" if tail.written_at is None else f"the newest line is {duration(now - tail.written_at)} old"


def last_words(run: RunDirectory) -> str:
    """The message of the last line of train.log."""
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
