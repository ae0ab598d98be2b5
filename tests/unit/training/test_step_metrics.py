import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from pico_ds.config import parse_config
from pico_ds.engine.distributed import Process
from pico_ds.tasks.hybrid_schedule import StepKind, step_kind
from pico_ds.training.step_metrics import MetricsWindow, ReducedMetrics, StepMetrics

SINGLE_RANK = Process(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def step(kind: StepKind, seconds: float, tokens: int, tasks: int = 0, **values: float) -> StepMetrics:
    contributions = {name: torch.tensor(value) for name, value in {"unused": 0.0, **values}.items()}
    reduced = ReducedMetrics(contributions, {}, SINGLE_RANK)
    reduced.copy_to_host(torch.tensor(1.0))
    return StepMetrics(kind, reduced, 0.5, tokens, tasks, seconds=seconds)


def test_window_averages_metrics_and_computes_throughput() -> None:
    window = MetricsWindow()
    window.add(step("ar", 2.0, 100, loss=4.0))
    window.add(step("meta", 3.0, 50, tasks=6, accuracy=0.5))
    window.add(step("ar", 1.0, 100, loss=2.0))
    summary = window.summary()
    assert summary["loss"] == 3.0
    assert summary["accuracy"] == 0.5
    assert summary["seconds_per_step"] == pytest.approx(6.0 / 3)
    assert summary["lr"] == 0.5
    assert summary["tokens_per_second"] == pytest.approx(250 / 6.0)
    # the task throughput counts only the time of meta steps
    assert summary["tasks_per_second"] == pytest.approx(6 / 3.0)


def test_window_computes_flops_utilization_and_data_wait() -> None:
    """300 TFLOP in 2 s on devices with a total peak of 500 TFLOP/s give a utilization of 0.3."""
    window = MetricsWindow()
    for seconds, flops, waited in ((0.5, 1e14, 0.1), (1.5, 2e14, 0.3)):
        window.add(replace(step("ar", seconds, 1), flops=flops, data_wait_seconds=waited))
    assert window.summary(peak_flops=5e14)["model_flops_utilization"] == pytest.approx(0.3)
    assert window.summary()["data_wait_fraction"] == pytest.approx(0.2)
    assert "model_flops_utilization" not in window.summary()


def test_means_exclude_values_that_are_not_finite() -> None:
    window = MetricsWindow()
    window.add(step("ar", 1.0, 1, loss=math.nan))
    assert window.summary()["loss"] is None
    window.add(step("ar", 1.0, 1, loss=2.0))
    assert window.summary()["loss"] == 2.0


def test_reduction_returns_metrics_and_host_values() -> None:
    contributions = {"a": torch.tensor(1.5), "b": torch.tensor(2.0)}
    reduced = ReducedMetrics(contributions, {"stop": 1.0, "seconds": 0.25}, SINGLE_RANK)
    assert bool(reduced.finite)
    reduced.copy_to_host(torch.tensor(3.0))
    assert reduced.values == {"a": 1.5, "b": 2.0, "outer_gradient_norm": 3.0}
    assert reduced.host_sums == {"stop": 1.0, "seconds": 0.25}
    assert reduced.applied


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_host_and_device_agree_that_a_metric_is_not_finite(bad: float) -> None:
    reduced = ReducedMetrics({"a": torch.tensor(0.0), "b": torch.tensor(bad)}, {"seconds": 0.1}, SINGLE_RANK)
    assert not bool(reduced.finite)
    reduced.copy_to_host(torch.tensor(1.0))
    assert not reduced.applied
    good = ReducedMetrics({"a": torch.tensor(0.0)}, {"seconds": math.nan}, SINGLE_RANK)
    assert bool(good.finite), "host values are not checked"
    good.copy_to_host(torch.tensor(bad))
    assert not good.applied


def test_window_survives_a_json_round_trip() -> None:
    """A window contains no NaN, which JSON cannot represent, but keeps the name of the metric."""
    window = MetricsWindow()
    window.add(step("ar", 2.0, 100, loss=4.0, other=math.nan))
    restored = MetricsWindow(**json.loads(json.dumps(asdict(window))))
    for each in (window, restored):
        each.add(step("ar", 1.0, 10, loss=0.1))
    assert restored.summary() == window.summary()
    assert restored.summary()["other"] is None


def test_step_kinds_follow_warmup_and_hybrid_ratio() -> None:
    config = parse_config("smlmt: {warmup_steps: 10, hybrid_ratio: 0.3}")
    kinds = [step_kind(s, config) for s in range(2010)]
    assert set(kinds[:10]) == {"ar"}
    assert abs(kinds[10:].count("meta") / 2000 - 0.3) < 0.04
    assert kinds == [step_kind(s, config) for s in range(2010)]

    def others(text: str) -> list[str]:
        return [step_kind(s, parse_config(text)) for s in range(100)]

    assert kinds[:100] != others("{smlmt: {warmup_steps: 10, hybrid_ratio: 0.3}, training: {seed: 1}}")
    assert set(others("smlmt: {hybrid_ratio: 1.0}")) == {"meta"}
    assert set(others("smlmt: {hybrid_ratio: 0.0}")) == {"ar"}
    assert set(others("{smlmt: {hybrid_ratio: 1.0}, meta: {learner: ar}}")) == {"ar"}
