"""Checkpoints as training goes, at its end, and when the job is told to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pico_ds.checkpoint.index import Index
from pico_ds.checkpoint.saver import CheckpointSaver
from pico_ds.engine.optimizer import learning_rate
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.metrics import StepMetrics
from pico_ds.training.stop_signals import StopSignals
from pico_ds.training.terminal import logger

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer

_STOP, _SAVE_FAILED = "stop", "save_failed"


class Checkpointing(Callback):
    """Saves every `checkpointing.save_every_n_steps`, at the end, and after SIGTERM or SIGUSR1, which ends training."""

    def __init__(
        self,
        saver: CheckpointSaver,
        signals: StopSignals,
        first_save_number: int,
        optimizer_steps: Callable[[], int],
        facts: Mapping[str, Any],
    ) -> None:
        """
        Args:
            facts: fields of the index that do not change as training goes.
        """
        self._saver, self._signals, self._save_number = saver, signals, first_save_number
        self._optimizer_steps, self._facts = optimizer_steps, facts

    def flags(self) -> dict[str, bool]:
        """Whether this rank was told to stop, or could not save."""
        return {_STOP: self._signals.received is not None, _SAVE_FAILED: self._saver.failed}

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Save where it is due.

        Raises:
            CheckpointError: the last save failed, on this rank or on another.
        """
        if _SAVE_FAILED in metrics.raised:
            self._saver.raise_failure()
        step, every = trainer.state.step, trainer.config.checkpointing.save_every_n_steps
        trainer.stopping = _STOP in metrics.raised
        if trainer.stopping or step == trainer.config.training.max_steps or (every is not None and step % every == 0):
            self._saver.start(self._index(trainer))
        if trainer.stopping:
            self._saver.finish()
            logger.info("%s: stopping after step %d", self._signals.received or "a signal on another rank", step)

    def before_update(self) -> None:
        """The state is about to change."""
        self._saver.before_update()

    def on_train_end(self, trainer: Trainer) -> None:
        """Wait for the last save."""
        self._saver.finish()

    def on_exit(self) -> None:
        """Nothing is in flight any more, but where training failed."""
        self._saver.abandon()

    def _index(self, trainer: Trainer) -> Index:
        config, state = trainer.config, trainer.state
        index = Index(
            step=state.step,
            save_number=self._save_number,
            world_size=trainer.engine.process.world_size,
            zero_stage=trainer.engine.stage,
            precision=config.training.precision,
            optimizer_steps=self._optimizer_steps(),
            progress=vars(state).copy(),
            callbacks={type(callback).__name__: found for callback in trainer.callbacks if (found := callback.state())},
            schedule={
                "lr_schedule": config.training.lr_schedule,
                "next_lr": learning_rate(state.step, config.training),
            },
            config=config.model_dump(),
            files={},
            parameters={},
            **self._facts,
        )
        self._save_number += 1
        return index
