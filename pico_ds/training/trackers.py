"""Where metrics go."""

import json
import math
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pico_ds.config import ConfigError, RunConfig
from pico_ds.training.run_files import RunDirectory
from pico_ds.training.tensorboard_tracker import TensorBoardTracker
from pico_ds.training.wandb_tracker import WandbTracker


class Tracker(Protocol):
    """A sink of metrics."""

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Take the metrics of one log line."""

    def sync(self) -> None:
        """Bring what was logged to the disk; from any thread."""

    def close(self) -> None:
        """Write what is pending."""


class JsonLinesTracker:
    """logs/metrics.jsonl: one JSON object a line, `step` first; a line is on its way to disk when `log` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write one line; a value that is not finite becomes null, since JSON has no NaN."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def sync(self) -> None:
        """Bring the lines to the disk: a checkpoint must not outlive the metrics that led to it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_trackers(config: RunConfig) -> None:
    """
    Raises:
        ConfigError: a tracker is asked for whose package is not there.
    """
    if config.monitoring.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            "monitoring.tensorboard: got true, but the package tensorboard is not installed; "
            "pip install 'pico_ds[tensorboard]' (or tensorboard), or write false"
        )


def build_trackers(config: RunConfig, run: RunDirectory, step: int, rewritten: bool) -> list[Tracker]:
    """The trackers of a run whose metrics.jsonl holds the lines up to where it goes on.

    Args:
        step: that the run goes on from.
        rewritten: the lines after that step were written before, and will not come alike.
    """
    monitoring = config.monitoring
    trackers: list[Tracker] = []
    # the past is read by trackers that lack it, up to where the file ends now
    if monitoring.wandb.mode != "disabled":
        past = _written_lines(run.metrics)
        trackers.append(WandbTracker(monitoring.wandb, run, config.model_dump(), past, anew=rewritten))
    if monitoring.tensorboard:
        trackers.append(TensorBoardTracker(run.tensorboard, _written_lines(run.metrics), step))
    return [JsonLinesTracker(run.metrics), *trackers]


def _written_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that a file has at the time of the call, read as they are asked for."""
    if not path.exists():
        return iter(())
    file = path.open("rb")
    end = path.stat().st_size

    def read() -> Iterator[dict[str, Any]]:
        with file:
            while file.tell() < end:
                yield json.loads(file.readline())

    return read()
