"""Shows a progress bar in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer


class ProgressBar(Callback):
    """Shows a progress bar with the remaining time on a terminal. Runs on rank 0 only."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: Trainer) -> None:
        """Show the bar."""
        total, completed = trainer.config.training.max_steps, trainer.state.step
        self._task = self._progress.add_task("training", total=total, completed=completed)
        self._progress.start()

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Update the bar."""
        self._progress.update(self._task, completed=trainer.state.step, description=f"{metrics.kind:>4} step")

    def on_exit(self) -> None:
        """Remove the bar."""
        self._progress.stop()
