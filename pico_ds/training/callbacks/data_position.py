"""Where the rows that come next are found again after a resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pico_ds.data.rows import TrainingRows
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer


class DataCursor(Callback):
    """Follows the position in the data; it stands before what saves."""

    def __init__(self, rows: TrainingRows) -> None:
        self._rows, self._position = rows, 0

    def state_dict(self) -> dict[str, Any]:
        """What the rows need to go on at the position."""
        return self._rows.state_dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self._rows.load_state_dict(state)

    def on_train_start(self, trainer: Trainer) -> None:
        """The position that was resumed."""
        self._position = trainer.state.rows

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """The position of the next step."""
        self._position = trainer.state.rows
