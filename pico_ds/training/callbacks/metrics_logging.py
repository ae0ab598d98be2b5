"""Sends metrics to the trackers, and lines to the log."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pico_ds.model.flops import peak_flops
from pico_ds.monitoring.run_log import logger
from pico_ds.monitoring.trackers import Tracker
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import MetricsWindow, StepMetrics, peak_memory_gib

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer


class MetricsLog(Callback):
    """Every `monitoring.log_every_n_steps`, logs the means of the metrics since the last line. On rank 0 only."""

    def __init__(self, trackers: list[Tracker], every_n_steps: int) -> None:
        self.trackers, self._every = trackers, every_n_steps
        self._window = MetricsWindow()
        #: step number -> metrics that are not in the window yet
        self._unread: dict[int, StepMetrics] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the current window."""
        self._read_until(None)
        return asdict(self._window)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the window."""
        known = MetricsWindow.__dataclass_fields__
        self._window = MetricsWindow(**{name: value for name, value in state.items() if name in known})

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Add the finished steps to the window. At the end of the window, add all steps and write a line."""
        state = trainer.state
        # the newest step may still run on the device, so do not wait for its metrics
        self._read_until(state.step)
        self._unread[state.step] = metrics
        diverged = state.consecutive_skipped_steps >= trainer.config.training.max_consecutive_skipped_steps
        if state.step % self._every and state.step != trainer.config.training.max_steps and not diverged:
            return
        self._read_until(None)
        process = trainer.engine.process
        peak = peak_flops(process.device)
        summary = self._window.summary(None if peak is None else peak * process.world_size) | {
            "peak_memory_gib": peak_memory_gib(process.device),
            "rows": state.rows,
            "tasks": state.tasks,
            "tokens": state.tokens,
            "skipped_steps": state.skipped_steps,
        }
        self._window = MetricsWindow()
        for tracker in self.trackers:
            tracker.log(state.step, summary)
        logger.info("step %d/%d  %s", state.step, trainer.config.training.max_steps, _headline(summary))

    def _read_until(self, step: int | None) -> None:
        for number in [number for number in self._unread if step is None or number < step]:
            metrics = self._unread.pop(number)
            self._window.add(metrics)
            if not metrics.reduced.applied:
                logger.warning("step %d skipped: the loss or gradient is not finite", number)

    def on_exit(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            tracker.close()


class FirstStepClock(Callback):
    """Logs the time from the start of the command to the end of the first step. Runs on rank 0 only."""

    def __init__(self, started: float) -> None:
        self._started: float | None = started

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Log the time after the first step."""
        if self._started is not None:
            logger.info("first step done %.1f s after the start", time.time() - self._started)
            self._started = None


def _headline(summary: dict[str, Any]) -> str:
    shown = {
        "ar/loss": "ar loss {:.3f}",
        "meta/query_loss": "query loss {:.3f}",
        "meta/query_accuracy": "query accuracy {:.3f}",
        "lr": "lr {:.2e}",
        "tokens_per_second": "{:,.0f} tokens/s",
    }
    return "  ".join(form.format(summary[name]) for name, form in shown.items() if summary.get(name) is not None)
