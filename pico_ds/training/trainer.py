"""The outer loop."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pico_ds.config import RunConfig
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.optimizer import learning_rate
from pico_ds.errors import TrainingError
from pico_ds.tasks.hybrid_schedule import StepKind, step_kind
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import ReducedMetrics, StepMetrics
from pico_ds.training.train_step import LocalStepResult, TrainStep
from pico_ds.training.training_state import TrainingState

#: seconds of the last step, which every rank sends to the others with its flags
_SECONDS_KEY = "seconds"
#: the host waits immediately for steps longer than this [s]: the device idles only briefly, and a stop signal takes
#: effect one step earlier
_LONG_STEP_SECONDS = 1.0


@dataclass
class Trainer:
    """Takes outer steps until `training.max_steps`. Callbacks do everything else.

    The host runs one step ahead of the device: after it launches a step, it waits for the previous step. The result of
    a step is therefore known one step later, or after a call of `synchronize`.
    """

    config: RunConfig
    engine: MetaEngine
    outer_step: TrainStep
    callbacks: Sequence[Callback]
    state: TrainingState = field(default_factory=TrainingState)
    #: a callback sets this to end training after the current step; it must do so on all ranks
    stopping: bool = False
    #: callback flags that were true on any rank in the newest step whose result is known; equal on every rank
    raised_flags: frozenset[str] = frozenset()
    _pending: StepMetrics | None = None
    _seconds: float = 0.0
    _is_long: bool = False

    def load_progress(self, progress: dict[str, int], callbacks: dict[str, Any]) -> None:
        """Restore the progress and the callbacks of a checkpoint. The engine must already have its weights."""
        known = TrainingState.__dataclass_fields__
        # ignore counters that only another version has
        self.state = TrainingState(**{name: value for name, value in progress.items() if name in known})
        for callback in self.callbacks:
            if (found := callbacks.get(type(callback).__name__)) is not None:
                callback.load_state_dict(found)

    def train(self) -> None:
        """Run the outer loop.

        Raises:
            TrainingError: the loss or gradient was not finite for too many consecutive steps.
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
                self._raise_if_diverged()
            self.synchronize()
            self._raise_if_diverged()
            for callback in self.callbacks:
                callback.on_stop(self) if self.stopping else callback.on_train_end(self)

    def take_step(self) -> StepMetrics:
        """Take one outer step: compute this rank's gradient, reduce it over ranks, and apply it. Return the metrics."""
        started = time.perf_counter()
        step = self.state.step
        kind = step_kind(step, self.config)
        lr = learning_rate(step, self.config.training)
        theta = self.engine.full_parameters(for_update=True)
        local = self.outer_step.compute(
            kind, theta, step, self.state.rows, measure=self._is_measured(step), by_layer=self._is_by_layer(step)
        )
        reduced = ReducedMetrics(local.contributions, self._host_flags(), self.engine.process)
        for callback in self.callbacks:
            callback.pre_optim_step()
        norm = self.engine.apply_gradient(local.gradient, lr, is_finite=reduced.finite)
        reduced.copy_to_host(norm)
        metrics = StepMetrics(kind, reduced, lr, local.tokens, local.tasks, local.flops, local.data_wait_seconds)
        self._advance(kind, local)
        # the device computes this step while the host waits for the previous step
        waited = self.synchronize()
        metrics.seconds = time.perf_counter() - started - waited
        self._pending = metrics
        if self._is_long or self.state.step % self.config.monitoring.log_every_n_steps == 0:
            self.synchronize()
        return metrics

    def synchronize(self) -> float:
        """Wait for the newest step, and update the state. All ranks must call this after the same steps.

        Returns:
            the time spent waiting, which is also added to the seconds of the step [s].
        """
        if (metrics := self._pending) is None:
            return 0.0
        started, self._pending = time.perf_counter(), None
        applied, host_sums = metrics.reduced.applied, metrics.reduced.host_sums
        waited = time.perf_counter() - started
        self._seconds = metrics.seconds = metrics.seconds + waited
        self.raised_flags = frozenset(name for name, count in host_sums.items() if count > 0 and name != _SECONDS_KEY)
        self._is_long = host_sums[_SECONDS_KEY] > _LONG_STEP_SECONDS * self.engine.process.world_size
        self.state.consecutive_skipped_steps = 0 if applied else self.state.consecutive_skipped_steps + 1
        self.state.skipped_steps += not applied
        return waited

    def _host_flags(self) -> dict[str, float]:
        flags = {name: float(flag) for callback in self.callbacks for name, flag in callback.flags().items()}
        return {**flags, _SECONDS_KEY: self._seconds}

    def _advance(self, kind: StepKind, local: LocalStepResult) -> None:
        state = self.state
        state.step += 1
        state.meta_steps += kind == "meta"
        state.ar_steps += kind == "ar"
        state.rows += local.rows
        state.tokens += local.tokens
        state.tasks += local.tasks

    def _raise_if_diverged(self) -> None:
        limit = self.config.training.max_consecutive_skipped_steps
        if self.state.consecutive_skipped_steps >= limit:
            last = self.state.step - (self._pending is not None)
            raise TrainingError(
                f"{limit} outer steps in a row (the last is step {last}) had a loss or gradient that is not finite, on "
                "all ranks; these steps did not change the weights. Lower training.lr or meta.inner_lr, raise "
                "training.lr_warmup_steps, or lower training.max_grad_norm"
            )

    def _is_measured(self, step: int) -> bool:
        """Return whether to compute the costly metrics, as in the first meta step of every log window."""
        first = step - step % self.config.monitoring.log_every_n_steps
        return all(step_kind(earlier, self.config) == "ar" for earlier in range(first, step))

    def _is_by_layer(self, step: int) -> bool:
        every = self.config.learning_dynamics.log_every_n_steps
        return every is not None and step % every == 0
