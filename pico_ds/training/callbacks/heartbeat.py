"""Tells the watchdog that training makes progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pico_ds.faults.watchdog import Watchdog
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer


class Heartbeat(Callback):
    """Sends one heartbeat per step."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Tell the watchdog that this rank has finished a step."""
        self._watchdog.beat()
