"""The host runs one step ahead of the device, and all ranks make the same decisions."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from pico_ds.config import RunConfig, parse_config
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.errors import TrainingError
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import ReducedMetrics, StepMetrics
from pico_ds.training.train_step import LocalStepResult, TrainStep
from pico_ds.training.trainer import Trainer


class FakeEngine:
    process = Process(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))

    def __init__(self) -> None:
        self.is_finite: list[bool] = []

    def full_parameters(self, for_update: bool) -> dict[str, torch.Tensor]:
        return {}

    def apply_gradient(self, gradient: Any, lr: float, is_finite: torch.Tensor) -> torch.Tensor:
        self.is_finite.append(bool(is_finite))
        return torch.tensor(2.0)


class FakeStep:
    def __init__(self, losses: dict[int, float]) -> None:
        self.losses = losses

    def compute(self, kind: str, theta: Any, step: int, *_: object, **__: object) -> LocalStepResult:
        loss = torch.tensor(self.losses.get(step, 1.0))
        return LocalStepResult({}, {"ar/loss": loss}, tokens=10, tasks=0, rows=2, flops=0.0)


@dataclass
class Recorder(Callback):
    """Raises a flag at a step, and records what the trainer knows at the end of each step."""

    stop_at: int = -1
    known: list[tuple[int, int, frozenset[str]]] = field(default_factory=list)
    metrics: list[StepMetrics] = field(default_factory=list)
    step: int = 0

    def flags(self) -> dict[str, bool]:
        self.step += 1
        return {"stop": self.step == self.stop_at}

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self.known.append((trainer.state.step, trainer.state.skipped_steps, trainer.raised_flags))
        self.metrics.append(metrics)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the step numbers in the order in which the host waits for them."""
    made: list[ReducedMetrics] = []
    read: list[int] = []
    copy_to_host, wait = ReducedMetrics.copy_to_host, ReducedMetrics.wait

    def counted(self: ReducedMetrics, gradient_norm: torch.Tensor) -> None:
        made.append(self)
        copy_to_host(self, gradient_norm)

    def waited(self: ReducedMetrics) -> list[float]:
        read.append(made.index(self) + 1)
        return wait(self)

    monkeypatch.setattr(ReducedMetrics, "copy_to_host", counted)
    monkeypatch.setattr(ReducedMetrics, "wait", waited)
    return read


def make(losses: dict[int, float], recorder: Recorder, *overrides: str) -> tuple[Trainer, FakeEngine]:
    config: RunConfig = parse_config(
        "training: {max_steps: 6, max_consecutive_skipped_steps: 2}\nsmlmt: {hybrid_ratio: 0}", list(overrides)
    )
    engine = FakeEngine()
    return Trainer(config, cast(MetaEngine, engine), cast(TrainStep, FakeStep(losses)), [recorder]), engine


def test_host_waits_only_for_the_previous_step(reads: list[int]) -> None:
    recorder = Recorder()
    trainer, _ = make({}, recorder, "monitoring.log_every_n_steps=4")
    seen = []
    for _ in range(6):
        trainer.take_step()
        seen.append(list(reads))
    # the fourth step ends a log window, so the host waits for it
    assert seen == [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    trainer.synchronize()
    trainer.synchronize()
    assert reads == [1, 2, 3, 4, 5, 6], "the host waits for each step once"


def test_host_waits_at_once_after_a_long_step(reads: list[int]) -> None:
    trainer, _ = make({}, Recorder(), "monitoring.log_every_n_steps=100")
    trainer.take_step().seconds += 5.0
    trainer.take_step()  # at its end, the result of the first step is known
    trainer.take_step()  # sends the duration of the first step to the other ranks
    assert reads == [1, 2]
    trainer.take_step()  # at its end, every rank knows that the step was long
    assert reads == [1, 2, 3, 4]
    trainer.take_step()  # the second step was short
    trainer.take_step()
    assert reads == [1, 2, 3, 4, 5]


def test_flags_and_skipped_steps_are_known_one_step_later() -> None:
    recorder = Recorder(stop_at=2)
    trainer, engine = make({3: math.nan}, recorder)
    trainer.train()
    assert engine.is_finite == [True, True, True, False, True, True]
    stopped = frozenset({"stop"})
    nothing: frozenset[str] = frozenset()
    assert recorder.known == [
        (1, 0, nothing),
        (2, 0, nothing),
        (3, 0, stopped),
        (4, 0, nothing),
        (5, 1, nothing),
        (6, 1, nothing),
    ]
    assert (trainer.state.skipped_steps, trainer.state.consecutive_skipped_steps) == (1, 0)
    assert [metrics.reduced.applied for metrics in recorder.metrics] == [True, True, True, False, True, True]
    assert recorder.metrics[0].reduced.values == {"ar/loss": 1.0, "outer_gradient_norm": 2.0}


@pytest.mark.parametrize(("first", "raised_after"), [(1, 4), (4, 6)])
def test_too_many_consecutive_skipped_steps_end_training(first: int, raised_after: int) -> None:
    """Training fails one step later, or at the last step before its result is accepted."""
    recorder = Recorder()
    trainer, _ = make({first: math.inf, first + 1: math.nan}, recorder)
    with pytest.raises(TrainingError, match=rf"2 outer steps in a row \(the last is step {first + 2}\)"):
        trainer.train()
    assert len(recorder.known) == raised_after
