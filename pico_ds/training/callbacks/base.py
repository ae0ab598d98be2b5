"""What happens periodically, beside the training itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pico_ds.training.step_metrics import StepMetrics
    from pico_ds.training.trainer import Trainer


class Callback:
    """Called by the trainer, on every rank, in the order given to it. Methods that are not needed do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """What must be known after a resume, as plain JSON; rank 0's is saved."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def flags(self) -> dict[str, bool]:
        """What the other ranks must know by the end of this step; the same names on every rank.

        They travel with the step's metrics: `trainer.raised` has those that any rank raised, one step later.
        """
        return {}

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first step."""

    def pre_optim_step(self) -> None:
        """When the gradient of a step is on its way, before the optimizer changes anything."""

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """After every outer step; `trainer.state.step` counts it already."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last step."""

    def on_stop(self, trainer: Trainer) -> None:
        """Instead of `on_train_end`, where the job was told to stop."""

    def on_exit(self) -> None:
        """When training is over, well or not, in reverse order: close what is open."""
