"""wandb and TensorBoard receive every line once, even if a run is interrupted and resumed."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pico_ds.config import ConfigError, RunConfig, parse_config
from pico_ds.monitoring import trackers as trackers_module
from pico_ds.monitoring.trackers import Tracker, build_trackers, check_trackers
from pico_ds.runs.metrics_file import rewind_metrics
from pico_ds.runs.run_directory import RunDirectory


class FakeWandb(ModuleType):
    """A wandb server that keeps the rows of every run, and an SDK that fails if row numbers do not increase."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.server: dict[str, dict[int, dict[str, Any]]] = {}
        self.inits: list[dict[str, Any]] = []
        #: number of the last row that the network transmits; None if it transmits all rows
        self.lost_after: int | None = None

    def Settings(self, **_: Any) -> None:  # noqa: N802
        return None

    def init(self, **arguments: Any) -> "SimpleNamespace":
        self.inits.append(arguments)
        online = arguments["mode"] == "online"
        # offline, each start has a separate file, which replaces the earlier rows when it is synced
        rows: dict[int, dict[str, Any]] = {}
        if online and arguments["resume"] == "allow":
            rows = self.server.setdefault(arguments["id"], {})
        self.server[arguments["id"]] = rows

        def log(row: dict[str, Any], step: int) -> None:
            assert step > max(rows, default=-1), "wandb would drop this row with a warning"
            if self.lost_after is None or step <= self.lost_after:
                rows[step] = row

        return SimpleNamespace(
            id=arguments["id"],
            step=max(rows, default=-1) + 1,
            config=SimpleNamespace(update=lambda *_, **__: None),
            define_metric=lambda *_, **__: None,
            log=log,
            finish=lambda: None,
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def configuration(mode: str, tensorboard: bool = False) -> RunConfig:
    return parse_config(f"{{monitoring: {{tensorboard: {str(tensorboard).lower()}, wandb: {{mode: {mode}}}}}}}")


def log_steps(trackers: list[Tracker], steps: range, evaluated: tuple[int, ...] = (), close: bool = True) -> None:
    for step in steps:
        for tracker in trackers:
            tracker.log(step, {"lr": 0.1, "ar/loss": 10.0 - step})
        for tracker in trackers if step in evaluated else []:
            tracker.log(step, {"eval/validation_loss": 5.0 - step})
    for tracker in trackers if close else []:
        tracker.close()


def seen(rows: dict[int, dict[str, Any]]) -> list[tuple[int, bool]]:
    """Return the step of every row, and whether the row is an evaluation."""
    return [(row["step"], "eval/validation_loss" in row) for row in rows.values()]


def start_trackers(config: RunConfig, run: RunDirectory, step: int, changed: bool = False) -> list[Tracker]:
    """Return the trackers of a run that starts at step 0 or resumes from a step."""
    rewound = rewind_metrics(run.metrics, step)
    return build_trackers(config, run, step, rewritten=rewound and changed)


WHOLE = [(1, False), (2, False), (3, False), (3, True), (4, False), (5, False), (6, False), (6, True)]


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("lost_after", [None, 3, 7])
def test_resumed_run_continues_its_wandb_run_with_every_line_once(
    wandb: FakeWandb, tmp_path: Path, mode: str, lost_after: int | None
) -> None:
    """The run dies after step 5 and resumes from step 3. wandb may have lost the last lines of the first start."""
    run, config = RunDirectory(tmp_path / "run"), configuration(mode)
    wandb.lost_after = lost_after
    log_steps(start_trackers(config, run, 0), range(1, 6), evaluated=(3,))
    wandb.lost_after = None
    log_steps(start_trackers(config, run, 3), range(4, 7), evaluated=(6,))
    (rows,) = wandb.server.values()
    # the resume removes the evaluation of step 3 from metrics.jsonl
    missing = {(3, True)} if mode == "offline" or lost_after == 3 else set()
    assert seen(rows) == [entry for entry in WHOLE if entry not in missing]
    assert [start["id"] for start in wandb.inits] == [run.wandb_id.read_text().strip()] * 2
    assert wandb.inits[0]["resume"] == ("allow" if mode == "online" else None)


def test_evaluation_after_a_resume_reaches_wandb(wandb: FakeWandb, tmp_path: Path) -> None:
    """The run stops at a step and evaluates it when it resumes. The training line of the step was sent before."""
    run, config = RunDirectory(tmp_path / "run"), configuration("online")
    log_steps(start_trackers(config, run, 0), range(1, 4))
    trackers = start_trackers(config, run, 3)
    for tracker in trackers:
        tracker.log(3, {"eval/validation_loss": 2.0})
    log_steps(trackers, range(4, 7), evaluated=(6,))
    (rows,) = wandb.server.values()
    assert seen(rows) == WHOLE


def test_run_resumed_with_changes_creates_a_new_wandb_run(wandb: FakeWandb, tmp_path: Path) -> None:
    run, config = RunDirectory(tmp_path / "run"), configuration("online")
    log_steps(start_trackers(config, run, 0), range(1, 6))
    log_steps(start_trackers(config, run, 3, changed=True), range(4, 7))
    first, second = wandb.server.values()
    assert [row["step"] for row in first.values()] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in second.values()] == [1, 2, 3, 4, 5, 6]
    assert wandb.inits[1]["id"] == run.wandb_id.read_text().strip() != wandb.inits[0]["id"]


def test_wandb_error_in_the_background_does_not_stop_the_run(wandb: FakeWandb, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    trackers = start_trackers(configuration("online"), run, 0)
    log_steps(trackers, range(1, 3), close=False)
    # FakeWandb raises because this number is already used
    for tracker in trackers[1:]:
        tracker._next = 0  # type: ignore[attr-defined]
        tracker.log(1, {"lr": 0.1})
    log_steps(trackers, range(3, 5))
    assert len(run.metrics.read_text().splitlines()) == 4


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory)).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    run, config = RunDirectory(tmp_path / "run"), configuration("disabled", tensorboard=True)
    log_steps(start_trackers(config, run, 0), range(1, 6), evaluated=(3,))
    trackers = start_trackers(config, run, 3)
    for tracker in trackers:
        tracker.log(3, {"eval/validation_loss": 2.0})
    log_steps(trackers, range(4, 7), evaluated=(6,))
    assert scalars(run.tensorboard, "ar/loss") == [(step, 10.0 - step) for step in range(1, 7)]
    assert scalars(run.tensorboard, "eval/validation_loss") == [(3, 2.0), (6, -1.0)]


def test_tensorboard_enabled_later_receives_past_metrics(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    log_steps(start_trackers(configuration("disabled"), run, 0), range(1, 4))
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": 3, "eval/validation_loss": None}) + "\n")
    log_steps(build_trackers(configuration("disabled", tensorboard=True), run, 3, False), range(4, 6))
    assert [step for step, _ in scalars(run.tensorboard, "ar/loss")] == [1, 2, 3, 4, 5]


def test_tensorboard_without_its_package_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"monitoring.tensorboard: got true, .* pip install 'pico_ds\[tensorboard\]'"):
        check_trackers(configuration("disabled", tensorboard=True))
    check_trackers(configuration("disabled"))
