"""Saves and restores the position in the training rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pico_ds.data.rows import TrainingRows
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer


class DataCursor(Callback):
    """Tracks the position in the training rows. It must come before the checkpointing callback, which saves it."""

    def __init__(self, rows: TrainingRows) -> None:
        self._rows, self._position = rows, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which the rows resume at the current position."""
        return self._rows.state_dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position."""
        self._rows.load_state_dict(state)

    def on_train_start(self, trainer: Trainer) -> None:
        """Start at the position of the checkpoint."""
        self._position = trainer.state.rows

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Move to the first row of the next step."""
        self._position = trainer.state.rows
