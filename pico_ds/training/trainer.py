"""The outer loop."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pico_ds.config import RunConfig
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.optimizer import learning_rate
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.errors import TrainingError
from pico_ds.training.metrics import StepMetrics, all_finite, reduce_contributions
from pico_ds.training.outer_step import LocalStep, OuterStep
from pico_ds.training.state import StepKind, TrainingState, step_kind


@dataclass
class Trainer:
    """Takes outer steps until `training.max_steps`; everything else is a callback."""

    config: RunConfig
    engine: MetaEngine
    outer_step: OuterStep
    callbacks: Sequence[Callback]
    state: TrainingState = field(default_factory=TrainingState)
    #: set by a callback, on all ranks alike, to end training after the step in flight
    stopping: bool = False

    def restore(self, progress: dict[str, int], callbacks: dict[str, Any]) -> None:
        """Stand where a checkpoint stood, its weights being in the engine already."""
        known = TrainingState.__dataclass_fields__
        # a counter that a newer version added is left alone
        self.state = TrainingState(**{name: value for name, value in progress.items() if name in known})
        for callback in self.callbacks:
            if (found := callbacks.get(type(callback).__name__)) is not None:
                callback.restore(found)

    def train(self) -> None:
        """Run the outer loop.

        Raises:
            TrainingError: too many steps in a row had a loss or gradient that is not finite.
            CheckpointError: a checkpoint could not be saved.
        """
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(callback.on_exit)
            for callback in self.callbacks:
                callback.on_train_start(self)
            while self.state.step < self.config.training.max_steps and not self.stopping:
                metrics = self.take_step()
                for callback in self.callbacks:
                    callback.on_step_end(self, metrics)
                self._stop_if_diverged()
            for callback in self.callbacks:
                callback.on_stop(self) if self.stopping else callback.on_train_end(self)

    def take_step(self) -> StepMetrics:
        """One outer step: read theta, compute this rank's share, agree, apply one gradient."""
        started = time.perf_counter()
        step = self.state.step
        kind = step_kind(step, self.config.smlmt, self.config.training.seed)
        lr = learning_rate(step, self.config.training)
        theta = self.engine.full_parameters(for_update=True)
        local = self.outer_step.compute(
            kind, theta, step, self.state.rows, measure=self._is_measured(step), by_layer=self._is_by_layer(step)
        )
        values, raised = reduce_contributions(local, self._flags(), self.engine.process)
        applied = all_finite(values)
        del values["local_gradient_norm"]
        if applied:
            for callback in self.callbacks:
                callback.before_update()
            values["outer_gradient_norm"] = self.engine.apply_gradient(local.gradient, lr)
        else:
            self.engine.drop_gradient()
        self._advance(kind, local, applied)
        values["lr"] = lr
        return StepMetrics(
            kind,
            values,
            applied,
            time.perf_counter() - started,
            local.tokens,
            local.tasks,
            raised,
            local.flops,
            local.data_wait_seconds,
        )

    def _flags(self) -> dict[str, bool]:
        return {name: flag for callback in self.callbacks for name, flag in callback.flags().items()}

    def _advance(self, kind: StepKind, local: LocalStep, applied: bool) -> None:
        state = self.state
        state.step += 1
        state.meta_steps += kind == "meta"
        state.ar_steps += kind == "ar"
        state.rows += local.rows
        state.tokens += local.tokens
        state.tasks += local.tasks
        state.consecutive_skipped_steps = 0 if applied else state.consecutive_skipped_steps + 1
        state.skipped_steps += not applied

    def _stop_if_diverged(self) -> None:
        limit = self.config.training.max_consecutive_skipped_steps
        if self.state.consecutive_skipped_steps >= limit:
            raise TrainingError(
                f"{limit} outer steps in a row (the last is step {self.state.step}) had a loss or gradient that is not "
                "finite, on all ranks alike; the weights are those of the last good step. Lower training.lr or "
                "meta.inner_lr, lengthen training.lr_warmup_steps, or lower training.max_grad_norm"
            )

    def _is_measured(self, step: int) -> bool:
        """Whether the costly metrics are taken: on the first meta step of every log window."""
        smlmt, seed, window = self.config.smlmt, self.config.training.seed, self.config.monitoring.log_every_n_steps
        first = step - step % window
        return all(step_kind(earlier, smlmt, seed) == "ar" for earlier in range(first, step))

    def _is_by_layer(self, step: int) -> bool:
        every = self.config.learning_dynamics.log_every_n_steps
        return every is not None and step % every == 0
