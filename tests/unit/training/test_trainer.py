"""The host runs one step ahead of the device, and what it decides it decides on all ranks alike."""

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
        self.sound: list[bool] = []

    def full_parameters(self, for_update: bool) -> dict[str, torch.Tensor]:
        return {}

    def apply_gradient(self, gradient: Any, lr: float, sound: torch.Tensor) -> torch.Tensor:
        self.sound.append(bool(sound))
        return torch.tensor(2.0)


class FakeStep:
    def __init__(self, losses: dict[int, float]) -> None:
        self.losses = losses

    def compute(self, kind: str, theta: Any, step: int, *_: object, **__: object) -> LocalStepResult:
        loss = torch.tensor(self.losses.get(step, 1.0))
        return LocalStepResult({}, {"ar/loss": loss}, tokens=10, tasks=0, rows=2, flops=0.0)


@dataclass
class Recorder(Callback):
    """Raises a flag at a step, and records what is known at the end of each."""

    stop_at: int = -1
    known: list[tuple[int, int, frozenset[str]]] = field(default_factory=list)
    metrics: list[StepMetrics] = field(default_factory=list)
    step: int = 0

    def flags(self) -> dict[str, bool]:
        self.step += 1
        return {"stop": self.step == self.stop_at}

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self.known.append((trainer.state.step, trainer.state.skipped_steps, trainer.raised))
        self.metrics.append(metrics)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the steps, in the order in which the host waited for them."""
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


def test_the_host_waits_for_the_step_before_alone(reads: list[int]) -> None:
    recorder = Recorder()
    trainer, _ = make({}, recorder, "monitoring.log_every_n_steps=4")
    seen = []
    for _ in range(6):
        trainer.take_step()
        seen.append(list(reads))
    # at the fourth step a line is logged
    assert seen == [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    trainer.synchronize()
    trainer.synchronize()
    assert reads == [1, 2, 3, 4, 5, 6], "no step is waited for twice"


def test_a_long_step_is_waited_for_at_once(reads: list[int]) -> None:
    trainer, _ = make({}, Recorder(), "monitoring.log_every_n_steps=100")
    trainer.take_step().seconds += 5.0
    trainer.take_step()  # at its end the first is settled
    trainer.take_step()  # tells the other ranks how long that took
    assert reads == [1, 2]
    trainer.take_step()  # at its end every rank knows
    assert reads == [1, 2, 3, 4]
    trainer.take_step()  # the second was short
    trainer.take_step()
    assert reads == [1, 2, 3, 4, 5]


def test_flags_and_skipped_steps_are_known_one_step_later() -> None:
    recorder = Recorder(stop_at=2)
    trainer, engine = make({3: math.nan}, recorder)
    trainer.train()
    assert engine.sound == [True, True, True, False, True, True]
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
def test_too_many_skipped_steps_in_a_row_end_training(first: int, raised_after: int) -> None:
    """In the middle one step later; at the end of the run, before anybody takes it for a good one."""
    recorder = Recorder()
    trainer, _ = make({first: math.inf, first + 1: math.nan}, recorder)
    with pytest.raises(TrainingError, match=rf"2 outer steps in a row \(the last is step {first + 2}\)"):
        trainer.train()
    assert len(recorder.known) == raised_after
