"""Where metrics go."""

import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pico_ds.config import ConfigError, RunConfig
from pico_ds.errors import describe_os_error
from pico_ds.file_writing import PatientFile
from pico_ds.monitoring.run_log import logger
from pico_ds.monitoring.tensorboard_tracker import TensorBoardTracker
from pico_ds.monitoring.wandb_tracker import WandbTracker
from pico_ds.runs.metrics_file import parse_record
from pico_ds.runs.run_directory import RunDirectory


class Tracker(Protocol):
    """A sink of metrics."""

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Take the metrics of one log line."""

    def sync(self) -> None:
        """Bring what was logged to the disk; from any thread."""

    def close(self) -> None:
        """Write what is pending."""


class JsonLinesTracker:
    """logs/metrics.jsonl: one JSON object a line, `step` first.

    A line is on its way to the disk when `log` returns, unless the disk is full. Then it waits in memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = PatientFile(path, self._warn)

    def _warn(self, error: OSError) -> None:
        logger.warning("warning: metrics wait in memory until they can be written: %s", describe_os_error(error))

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write one line; a value that is not finite becomes null, since JSON has no NaN."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self._file.append(json.dumps({"step": step, **finite}) + "\n")

    def sync(self) -> None:
        """Bring the lines to the disk: a checkpoint must not outlive the metrics that led to it."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        if n_bytes := self._file.close():
            logger.warning("warning: %s: the last %d bytes of metrics could not be written", self._path, n_bytes)


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
                if (record := parse_record(file.readline())) is not None:
                    yield record

    return read()
