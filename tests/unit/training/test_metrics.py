import json
import math
from dataclasses import asdict

import pytest
import torch

from pico_ds.config import SmlmtConfig
from pico_ds.engine.distributed import Process
from pico_ds.training.metrics import StepMetrics, Window, all_finite, reduce_contributions
from pico_ds.training.outer_step import LocalStep
from pico_ds.training.state import step_kind

ALONE = Process(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def step(kind: str, seconds: float, tokens: int, tasks: int = 0, **values: float) -> StepMetrics:
    return StepMetrics(kind, {"lr": 1.0, **values}, True, seconds, tokens, tasks)


def test_window_means_and_throughput_by_hand() -> None:
    window = Window()
    window.add(step("ar", 2.0, 100, loss=4.0))
    window.add(step("meta", 3.0, 50, tasks=6, accuracy=0.5))
    window.add(step("ar", 1.0, 100, loss=2.0))
    summary = window.summary()
    assert summary["loss"] == 3.0
    assert summary["accuracy"] == 0.5
    assert summary["seconds_per_step"] == pytest.approx(6.0 / 3)
    assert summary["tokens_per_second"] == pytest.approx(250 / 6.0)
    # tasks are counted against the time of meta steps alone
    assert summary["tasks_per_second"] == pytest.approx(6 / 3.0)


def test_utilization_and_data_wait_by_hand() -> None:
    """300 TFLOP in 2 s on devices that could do 500 TFLOP/s together: 0.3."""
    window = Window()
    for seconds, flops, waited in ((0.5, 1e14, 0.1), (1.5, 2e14, 0.3)):
        window.add(StepMetrics("ar", {"lr": 1.0}, True, seconds, 1, 0, flops=flops, data_wait_seconds=waited))
    assert window.summary(peak_flops=5e14)["model_flops_utilization"] == pytest.approx(0.3)
    assert window.summary()["data_wait_fraction"] == pytest.approx(0.2)
    assert "model_flops_utilization" not in window.summary()


def test_values_that_are_not_finite_are_left_out_of_means() -> None:
    window = Window()
    window.add(step("ar", 1.0, 1, loss=math.nan))
    assert window.summary()["loss"] is None
    window.add(step("ar", 1.0, 1, loss=2.0))
    assert window.summary()["loss"] == 2.0


def test_contributions_are_packed_in_order() -> None:
    local = LocalStep({}, {"a": torch.tensor(1.5), "b": torch.tensor(2.0)}, tokens=0, tasks=0, rows=0)
    values, raised = reduce_contributions(local, {"stop": True, "save_failed": False}, ALONE)
    assert values == {"a": 1.5, "b": 2.0}
    assert raised == {"stop"}


def test_an_open_window_survives_json() -> None:
    """NaN is not JSON: what is not finite is counted and left out."""
    window = Window()
    window.add(step("ar", 2.0, 100, loss=4.0, other=math.nan))
    restored = Window(**json.loads(json.dumps(asdict(window))))
    for each in (window, restored):
        each.add(step("ar", 1.0, 10, loss=0.1))
    assert restored.summary() == window.summary()
    assert restored.summary()["other"] is None


@pytest.mark.parametrize(("value", "expected"), [(1.0, True), (math.nan, False), (math.inf, False), (-math.inf, False)])
def test_all_finite(value: float, expected: bool) -> None:
    assert all_finite({"a": 0.0, "b": value}) is expected


def test_step_kinds_follow_warmup_and_ratio() -> None:
    config = SmlmtConfig(warmup_steps=10, hybrid_ratio=0.3)
    kinds = [step_kind(s, config, seed=0) for s in range(2010)]
    assert set(kinds[:10]) == {"ar"}
    assert abs(kinds[10:].count("meta") / 2000 - 0.3) < 0.04
    assert kinds == [step_kind(s, config, seed=0) for s in range(2010)]
    assert kinds != [step_kind(s, config, seed=1) for s in range(2010)]
    assert {step_kind(s, SmlmtConfig(hybrid_ratio=1.0), 0) for s in range(100)} == {"meta"}
    assert {step_kind(s, SmlmtConfig(hybrid_ratio=0.0), 0) for s in range(100)} == {"ar"}
