"""Where metrics go."""

import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

from pico_ds.config.schema import WandbConfig
from pico_ds.training.terminal import logger


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


class WandbTracker:
    """Weights & Biases. It must never stop a run: after an error it says so once and goes quiet."""

    def __init__(self, config: WandbConfig, run_name: str, directory: Path, run_config: dict[str, Any]) -> None:
        mode = config.mode
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._run: Any = None
        directory.mkdir(parents=True, exist_ok=True)
        try:
            import wandb

            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=run_name,
                dir=str(directory),
                config=run_config,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off", init_timeout=20),
            )
        except Exception as error:  # noqa: BLE001  any failure of a logger is less than the run
            self._give_up(error)
        else:
            logger.info("wandb: %s, in %s", mode, directory)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Send one record."""
        if self._run is None:
            return
        try:
            self._run.log(metrics, step=step)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def sync(self) -> None:
        """Wandb does as it likes."""

    def close(self) -> None:
        """Finish the run."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        logger.warning(
            "wandb is off for the rest of the run (%s: %s); metrics.jsonl goes on", type(error).__name__, error
        )
