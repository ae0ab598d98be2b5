"""Trackers, which record the metrics of a run."""

import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pico_ds.config import ConfigError, RunConfig
from pico_ds.errors import describe_os_error
from pico_ds.file_writing import RetryingFile
from pico_ds.monitoring.run_log import logger
from pico_ds.monitoring.tensorboard_tracker import TensorBoardTracker
from pico_ds.monitoring.wandb_tracker import WandbTracker
from pico_ds.runs.metrics_file import parse_record
from pico_ds.runs.run_directory import RunDirectory


class Tracker(Protocol):
    """Records metrics."""

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of one log line."""

    def sync(self) -> None:
        """Flush the logged metrics to the disk. Any thread may call this."""

    def close(self) -> None:
        """Write pending metrics and close the tracker."""


class JsonLinesTracker:
    """Writes logs/metrics.jsonl: one JSON object per line, with `step` first.

    `log` writes its line to the file before it returns. If that fails, for example because the disk is full, the line
    stays in memory until it can be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = RetryingFile(path, self._warn)

    def _warn(self, error: OSError) -> None:
        logger.warning("warning: metrics stay in memory until they can be written: %s", describe_os_error(error))

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write one line. Values that are not finite become null, because JSON has no NaN."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self._file.append(json.dumps({"step": step, **finite}) + "\n")

    def sync(self) -> None:
        """Flush the lines to the disk, so that no checkpoint exists without the metrics that led to it.

        Raises:
            OSError: some lines cannot be written.
        """
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        if n_bytes := self._file.close():
            logger.warning("warning: %s: the last %d bytes of metrics could not be written", self._path, n_bytes)


def check_trackers(config: RunConfig) -> None:
    """Fail if the configuration enables a tracker whose package is not installed.

    Raises:
        ConfigError: the package is not installed.
    """
    if config.monitoring.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            "monitoring.tensorboard: got true, but the package tensorboard is not installed; "
            "pip install 'pico_ds[tensorboard]' (or tensorboard), or set it to false"
        )


def build_trackers(config: RunConfig, run: RunDirectory, step: int, rewritten: bool) -> list[Tracker]:
    """Return the trackers of a run. Its metrics.jsonl must end at the step at which the run starts or resumes.

    Args:
        step: the outer step at which the run starts or resumes.
        rewritten: whether lines after `step` were written before and will have different values this time.
    """
    monitoring = config.monitoring
    trackers: list[Tracker] = []
    # trackers read the lines that they lack from metrics.jsonl, up to its current end
    if monitoring.wandb.mode != "disabled":
        past = _written_lines(run.metrics)
        trackers.append(WandbTracker(monitoring.wandb, run, config.model_dump(), past, new_run=rewritten))
    if monitoring.tensorboard:
        trackers.append(TensorBoardTracker(run.tensorboard, _written_lines(run.metrics), step))
    return [JsonLinesTracker(run.metrics), *trackers]


def _written_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Return the records that the file has at the time of the call. The iterator reads them lazily."""
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
