"""What happens periodically, beside the training itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pico_ds.training.metrics import StepMetrics
    from pico_ds.training.trainer import Trainer


class Callback:
    """Called by the trainer, on every rank, in the order given to it. Methods that are not needed do nothing."""

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first step."""

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """After every outer step; `trainer.state.step` counts it already."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last step."""

    def on_exit(self) -> None:
        """When training is over, well or not: close what is open."""
