"""Records a trace of a few steps for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from pico_ds.errors import describe_os_error
from pico_ds.monitoring.run_log import logger
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer


class Profile(Callback):
    """Profiles the steps from the first to the last of `monitoring.profile_steps`, inclusive, on every rank."""

    def __init__(self, steps: list[int], directory: Path) -> None:
        """
        Args:
            directory: where `trace_rank_<rank>.json.gz` is written.
        """
        self._first, self._last = steps
        self._directory = directory
        self._profiler: profile | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Start the profiler if the first profiled step is next."""
        self._begin_before(trainer.state.step + 1)

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Start the profiler before the first profiled step. Stop it after the last one and write the trace."""
        step = trainer.state.step
        if self._profiler is not None and (step == self._last or step == trainer.config.training.max_steps):
            process = trainer.engine.process
            if process.device.type == "cuda":
                torch.cuda.synchronize(process.device)
            self._profiler.stop()
            path = self._directory / f"trace_rank_{process.rank}.json.gz"
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._profiler.export_chrome_trace(str(path))
                logger.info("profile of steps %d to %d written to %s", self._first, step, path)
            except OSError as error:
                logger.error("warning: cannot write the profile: %s", describe_os_error(error, path))
            self._profiler = None
        self._begin_before(step + 1)

    def _begin_before(self, step: int) -> None:
        if step == self._first:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profiler = profile(activities=activities)
            self._profiler.start()

    def on_exit(self) -> None:
        """Discard an unfinished trace."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
