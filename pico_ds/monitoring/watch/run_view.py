"""Reads everything that is shown about a run. Each `refresh` reads only the files that have changed."""

import json
import time
from pathlib import Path
from typing import Any

from pico_ds.config import ConfigError, RunConfig, load_config
from pico_ds.monitoring.watch.metrics_tail import MetricsTail
from pico_ds.monitoring.watch.run_state import RunState, checkpoint_step, newest_summary, run_state_of
from pico_ds.runs.run_directory import JOB_FILE_NAME, RunDirectory

#: metrics to keep as a series
_SERIES = ("ar/loss", "meta/query_loss", "meta/query_accuracy", "seconds_per_step")
#: number of recent points to estimate the remaining time from, because a single one may be slow
_RECENT_LINES = 20


class RunView:
    """The content of a run directory. It is only read, never locked or written."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ConfigError: the path is not the directory of a run.
        """
        self.run = RunDirectory(path)
        _check(self.run)
        self.tail = MetricsTail(self.run.metrics, _SERIES)
        self.config: RunConfig | None = None
        self.environment: dict[str, Any] = {}
        #: content of eval_results/step_<N>.json, by step
        self.evaluations: dict[int, dict[str, Any]] = {}
        self._read_at: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the files that have changed.

        Raises:
            ConfigError: the run directory no longer exists, or its configuration cannot be loaded, for example
                because another version wrote it.
        """
        _check(self.run)
        self.tail.read()
        if self._is_new(self.run.training_config):
            self.config = load_config(self.run.training_config)
        if self._is_new(self.run.environment):
            self.environment = json.loads(self.run.environment.read_text(encoding="utf-8"))
        for path in self.run.eval_results.glob("step_*.json"):
            if self._is_new(path):
                self._read_evaluation(path)
        self.run_state: RunState = run_state_of(self.run, self.config, self.tail)

    def _read_evaluation(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.evaluations[content["step"]] = content
        except (ValueError, KeyError):
            # the file may still be incomplete: read it again at the next refresh
            del self._read_at[path]

    def _is_new(self, path: Path) -> bool:
        """Return whether the file exists and has changed since it was last read."""
        try:
            modified = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        is_new = self._read_at.get(path) != modified
        self._read_at[path] = modified
        return is_new

    def newest(self, name: str) -> Any | None:
        """Return the newest value of a metric, or None if there is none."""
        return self.tail.newest[name][1] if name in self.tail.newest else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time for the remaining steps at the recent speed, without evaluations and saves [s]."""
        recent = self.tail.series["seconds_per_step"].values[-_RECENT_LINES:]
        if self.config is None or not recent:
            return None
        return max(0, self.config.training.max_steps - self.tail.step) * sum(recent) / len(recent)

    @property
    def checkpoint(self) -> tuple[int, float] | None:
        """Step and age [s] of the newest checkpoint, or None if there is none."""
        if (step := checkpoint_step(self.run)) is None:
            return None
        return step, time.time() - (self.run.checkpoints / "latest").stat().st_mtime

    @property
    def failure(self) -> str:
        """The failure summary of the last failed start if the state of the run is "failed", otherwise empty."""
        path = newest_summary(self.run)
        return path.read_text(encoding="utf-8") if path is not None and self.run_state.state == "failed" else ""


def _check(run: RunDirectory) -> None:
    path = run.path
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory; give the directory of a run, such as runs/demo-001")
    if run.training_config.exists() or (path / JOB_FILE_NAME).exists():
        return
    runs = sorted(found.parent.name for found in path.glob("*/training_config.yaml"))
    hint = f"it contains the runs {', '.join(runs)}: give one of them" if runs else "give the directory of a run"
    raise ConfigError(f"{path} is not a run directory: it has no training_config.yaml; {hint}")
