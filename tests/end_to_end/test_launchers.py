"""Runs are the same on one and two ranks, under every ZeRO stage, and with every launcher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fomaml_reference import relative_error
from tests.launching import real, two_agents, warm
from tests.run_results import TIMINGS, assert_bit_identical, metrics_of, weights_of
from tests.shared_runs import SharedRuns

STEPS = 6
Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launchers")


@pytest.fixture(scope="module")
def arguments(runs_dir: Path, shared_runs: SharedRuns) -> Arguments:
    return lambda name, *others: shared_runs.arguments(runs_dir, name, *others)


@pytest.fixture
def one_rank(shared_runs: SharedRuns) -> Path:
    return shared_runs["plain"]


def assert_same_run(got: Path, wanted: Path) -> None:
    got_lines, wanted_lines = metrics_of(got), metrics_of(wanted)
    assert [line["step"] for line in got_lines] == [line["step"] for line in wanted_lines]
    for got_line, wanted_line in zip(got_lines, wanted_lines, strict=True):
        assert got_line.keys() == wanted_line.keys()
        for name in wanted_line.keys() - TIMINGS:
            assert got_line[name] == pytest.approx(wanted_line[name], rel=2e-4, abs=1e-6), (name, got_line["step"])
    assert relative_error(weights_of(got, STEPS), weights_of(wanted, STEPS)) < 1e-5


@pytest.mark.parametrize("stage", range(4))
def test_two_ranks_train_like_one_rank(stage: int, arguments: Arguments, runs_dir: Path, one_rank: Path) -> None:
    warm.torchrun(*arguments(f"zero{stage}", "--deepspeed_config", f"ds_configs/zero{stage}.json"))
    assert_same_run(runs_dir / f"zero{stage}", one_rank)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_real_launchers_train_like_one_rank(
    launcher: str, arguments: Arguments, runs_dir: Path, one_rank: Path
) -> None:
    launch = {"torchrun": real.torchrun, "deepspeed": real.deepspeed}[launcher]
    launch(*arguments(launcher))
    assert_same_run(runs_dir / launcher, one_rank)


def test_forked_run_equals_a_started_run(arguments: Arguments, runs_dir: Path, one_rank: Path) -> None:
    """The warm launcher does not change deterministic metrics and weights, bit for bit."""
    real.python(*arguments("python"))
    assert_bit_identical(runs_dir / "python", one_rank, STEPS)


def test_bf16_stages_agree_and_are_close_to_one_rank(arguments: Arguments, runs_dir: Path) -> None:
    """Ranks round gradients to bf16 before the sum, so one rank differs. All stages compute the same sums."""
    warm.python(*arguments("bf16-one", "training.precision=bf16"))
    for stage in (1, 2, 3):
        settings = ["--deepspeed_config", f"ds_configs/zero{stage}.json", "training.precision=bf16"]
        warm.torchrun(*arguments(f"bf16-zero{stage}", *settings))
    one, *stages = (metrics_of(runs_dir / f"bf16-{name}") for name in ("one", "zero1", "zero2", "zero3"))
    for other in stages[1:]:
        for got, wanted in zip(other, stages[0], strict=True):
            for name in wanted.keys() - TIMINGS:
                assert got[name] == pytest.approx(wanted[name], rel=1e-6), (name, got["step"])
    bf16_epsilon = 2**-8
    assert stages[0][0]["outer_gradient_norm"] == pytest.approx(one[0]["outer_gradient_norm"], rel=bf16_epsilon)
    for got, wanted in zip(stages[0], one, strict=True):
        for name in {"ar/loss", "eval/validation_loss"} & wanted.keys():
            assert got[name] == pytest.approx(wanted[name], rel=1e-3), (name, got["step"])


def test_two_torchrun_agents_train_like_one_rank(arguments: Arguments, runs_dir: Path, one_rank: Path) -> None:
    two_agents(arguments("agents"))
    assert_same_run(runs_dir / "agents", one_rank)


def test_metrics_contain_losses_rates_and_counters(one_rank: Path) -> None:
    lines: list[dict[str, Any]] = metrics_of(one_rank)
    training = [line for line in lines if "lr" in line]
    assert [line["step"] for line in training] == list(range(1, STEPS + 1))
    meta = [line for line in training if "meta/query_loss_after" in line]
    assert meta, "the tiny run has meta steps"
    for moment in ("before", "after"):
        for part in ("support", "query"):
            assert {f"meta/{part}_loss_{moment}", f"meta/{part}_accuracy_{moment}"} <= meta[0].keys()
    assert {"meta/relative_displacement", "meta/inner_gradient_norm", "outer_gradient_norm"} <= meta[0].keys()
    assert meta[0]["tasks_per_second"] > 0
    assert 0 < meta[0]["meta/relative_displacement"] < 1
    autoregressive = [line for line in training if "ar/loss" in line]
    assert len(autoregressive) + len(meta) == STEPS
    assert all(line["tokens_per_second"] > 0 and line["peak_memory_gib"] > 0 for line in training)
    assert training[-1]["rows"] == 5 * len(autoregressive)
    assert training[-1]["tasks"] == 3 * len(meta)
