"""Saves checkpoints during training, at its end, and when the job must stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pico_ds.checkpoint.background_saver import CheckpointSaver
from pico_ds.checkpoint.checkpoint_index import Index, ScheduleRecord
from pico_ds.engine.optimizer import learning_rate
from pico_ds.faults.stop_signals import StopSignals
from pico_ds.monitoring.run_log import logger
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer

_STOP, _SAVE_FAILED = "stop", "save_failed"


class Checkpointing(Callback):
    """Saves every `checkpointing.save_every_n_steps` and at the end. A stop signal saves and ends training."""

    def __init__(
        self,
        saver: CheckpointSaver,
        signals: StopSignals,
        next_save_number: int,
        last: Index | None,
        optimizer_steps: Callable[[], int],
        constant_fields: Mapping[str, Any],
    ) -> None:
        """
        Args:
            last: index of the checkpoint of this run from which training resumed; None if there is none.
            optimizer_steps: returns the number of optimizer steps.
            constant_fields: fields of the index that are constant during training.
        """
        self._saver, self._signals, self._save_number = saver, signals, next_save_number
        self._last = last
        self._optimizer_steps, self._constant_fields = optimizer_steps, constant_fields

    def flags(self) -> dict[str, bool]:
        """Return whether this rank received a stop signal, and whether its save failed."""
        return {_STOP: self._signals.received is not None, _SAVE_FAILED: self._saver.failed}

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Save if the step is due.

        Raises:
            CheckpointError: the last save failed on any rank.
        """
        if _SAVE_FAILED in trainer.raised_flags:
            self._saver.raise_failure()
        step, every = trainer.state.step, trainer.config.checkpointing.save_every_n_steps
        trainer.stopping = _STOP in trainer.raised_flags
        if step == trainer.config.training.max_steps or (every is not None and step % every == 0):
            self._save(trainer)

    def pre_optim_step(self) -> None:
        """Wait until the saver has copied the state that the optimizer is about to change."""
        self._saver.pre_optim_step()

    def on_train_end(self, trainer: Trainer) -> None:
        """Wait for the last save."""
        self._saver.finish()

    def on_stop(self, trainer: Trainer) -> None:
        """Save the current step unless it is already saved."""
        if self._last is None or self._last.step != trainer.state.step:
            self._save(trainer)
        self._saver.finish()
        reason = self._signals.received or "a signal on another rank"
        logger.info("%s: stopping after step %d", reason, trainer.state.step)

    def on_exit(self) -> None:
        """Abandon the save in progress, which exists only if training failed."""
        self._saver.abandon()

    def _save(self, trainer: Trainer) -> None:
        trainer.synchronize()
        self._last = self._index(trainer)
        self._save_number += 1
        self._saver.start(self._last)

    def _index(self, trainer: Trainer) -> Index:
        config, state = trainer.config, trainer.state
        return Index(
            step=state.step,
            save_number=self._save_number,
            previous_save_number=None if self._last is None else self._last.save_number,
            world_size=trainer.engine.process.world_size,
            zero_stage=trainer.engine.stage,
            precision=config.training.precision,
            optimizer_steps=self._optimizer_steps(),
            progress=vars(state).copy(),
            callbacks={
                type(callback).__name__: found for callback in trainer.callbacks if (found := callback.state_dict())
            },
            schedule=ScheduleRecord(
                lr_schedule=config.training.lr_schedule, next_lr=learning_rate(state.step, config.training)
            ),
            config=config.model_dump(),
            files={},
            parameters={},
            **self._constant_fields,
        )
