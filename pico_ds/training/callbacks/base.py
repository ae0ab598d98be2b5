"""The interface of callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pico_ds.training.step_metrics import StepMetrics
    from pico_ds.training.trainer import Trainer


class Callback:
    """The trainer calls every callback on every rank, in the order of its list. By default, methods do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resume restores, as plain JSON. Checkpoints contain the state of rank 0."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""

    def flags(self) -> dict[str, bool]:
        """Return the flags to share with the other ranks. The names must be equal on every rank.

        The flags are reduced together with the metrics of the step. One step later, `trainer.raised_flags` contains the
        flags that are true on any rank.
        """
        return {}

    def on_train_start(self, trainer: Trainer) -> None:
        """Called before the first step."""

    def pre_optim_step(self) -> None:
        """Called after the gradient is computed and before the optimizer changes its state."""

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Called after every outer step. `trainer.state.step` already includes the step."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Called after the last step."""

    def on_stop(self, trainer: Trainer) -> None:
        """Called instead of `on_train_end` if the job must stop early."""

    def on_exit(self) -> None:
        """Called when training ends or fails, in reverse order of the callbacks. Closes open resources."""
