"""Jobs whose ranks die or hang: failure reports, and restarts."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pico_ds.runs.run_directory import RunDirectory
from pico_ds.runs.run_status import RunStatus
from tests.launching import real, two_agents, warm
from tests.run_results import assert_bit_identical, metrics_of
from tests.shared_runs import RESUMABLE, RESUMABLE_STEPS, SharedRuns

HANG_SECONDS = 6
WATCHED = f"training.hang_timeout_seconds={HANG_SECONDS}"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def arguments(directory: Path, shared_runs: SharedRuns) -> Callable[..., list[str]]:
    script = "tests/end_to_end/faulty_train.py"
    return lambda name, *others: shared_runs.arguments(directory, name, *RESUMABLE, *others, script=script)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    monkeypatch.setenv("FAULT_MARKS", str(tmp_path))
    return lambda text: monkeypatch.setenv("FAULT", text)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_dead_rank_ends_the_job_and_is_named(
    launcher: str, arguments: Callable[..., list[str]], directory: Path, fault: Callable[[str], None]
) -> None:
    # the save at step 6 starts only after the save at step 4 is published
    fault("die 1 7")
    name = f"dies-{launcher}"
    started = time.monotonic()
    launch = {"torchrun": real.torchrun, "deepspeed": real.deepspeed}[launcher]
    output = launch(*arguments(name), check=False)
    message = "rank 0: a collective failed because another rank has ended: rank 1 of this node has died"
    assert message in output, output
    # the start, and at most 30 s after the death
    assert time.monotonic() - started < 60
    checkpoint = directory / name / "checkpoints" / "step_4"
    assert "all files match their hashes" in warm.python("scripts/checkpoint.py", "verify", str(checkpoint))
    summary = summary_of(directory / name, output)
    assert "first      rank 1 died without an error message" in summary
    assert "others     rank 0 ended as a result, after 7 steps" in summary


def summary_of(run_directory: Path, output: str) -> str:
    """The summary of the only failed start. Fail unless it was printed exactly once."""
    (summary,) = (run_directory / "logs" / "failures").glob("*/summary.txt")
    assert output.count("the run failed") == output.count(summary.read_text()) == 1
    assert RunStatus.read(RunDirectory(run_directory)).state == "failed"
    return summary.read_text()


def test_failed_rank_reports_its_error(
    arguments: Callable[..., list[str]], directory: Path, fault: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault("raise 1 5")
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    output = real.torchrun(*arguments("raises"), check=False)
    assert "the disk of the data is gone" in output
    assert "rank 0: a collective failed because another rank has ended" in output
    summary = summary_of(directory / "raises", output)
    assert "first      rank 1, after 5 steps: OSError: the disk of the data is gone" in summary
    assert re.search(r"checkpointing.run_name=raises to resume from checkpoints/step_[24]\n", summary)
    # torchrun's own report names this error as the root cause, with the log of the rank
    root = output.split("Root Cause")[1]
    assert re.search(r"OSError: the disk of the data is gone; see \S+/rank_1.log", root)
    logs = {path.name: path.read_text() for path in (directory / "raises" / "logs" / "failures").glob("*/rank_*.log")}
    assert set(logs) == {"rank_0.log", "rank_1.log"}
    assert 'raise OSError("the disk of the data is gone")' in logs["rank_1.log"]
    assert "all_reduce" in logs["rank_0.log"]
    for log in logs.values():
        assert "5 outer steps done" in log
        assert "WORLD_SIZE=2" in log
        assert '"torch": ' in log
        assert "a-secret" not in log


def test_changed_configuration_is_not_reported_as_a_failure(directory: Path, shared_runs: SharedRuns) -> None:
    run = shared_runs.copy("plain", directory / "plain")
    before = (run / "logs" / "status.json").read_text()
    output = warm.torchrun(*shared_runs.arguments(directory, "plain", "training.lr=1"), check=False)
    assert "error: " in output
    assert "was trained with a different configuration: training.lr was" in output
    assert "the run failed" not in output
    assert not (run / "logs" / "failures").exists()
    assert (run / "logs" / "status.json").read_text() == before


#: stage 2 is in the default tier because it takes longest: ZeRO 2 waits in a separate process group without the timeout
@pytest.mark.parametrize("stage", [2, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3))])
def test_hanging_rank_is_detected_under_every_stage(
    arguments: Callable[..., list[str]], directory: Path, fault: Callable[[str], None], stage: int
) -> None:
    fault("hang 1 5")
    name = f"hangs-{stage}"
    started = time.monotonic()
    output = warm.torchrun(*arguments(name, WATCHED, "--deepspeed_config", f"ds_configs/zero{stage}.json"), check=False)
    assert time.monotonic() - started < HANG_SECONDS + 60
    assert f"no progress for {HANG_SECONDS} s (training.hang_timeout_seconds)" in output
    stacks = [(directory / name / "logs" / f"stacks_rank_{rank}.txt").read_text() for rank in range(2)]
    assert "in fail" in stacks[1]
    assert "all_reduce" in stacks[0] or "sum_over_ranks" in stacks[0]
    assert f"first      rank 1, after 5 steps: no progress for {HANG_SECONDS} s" in summary_of(directory / name, output)


def test_watchdog_detects_a_hang_that_holds_the_interpreter_lock(
    arguments: Callable[..., list[str]], directory: Path, fault: Callable[[str], None]
) -> None:
    """The rank hangs in native code, so no thread of the rank can run Python."""
    fault("hang_locked 1 5")
    output = warm.torchrun(*arguments("locked", WATCHED), check=False)
    assert "first      rank 1 hangs outside of Python" in summary_of(directory / "locked", output)
    stacks = [(directory / "locked" / "logs" / f"stacks_rank_{rank}.txt").read_text() for rank in range(2)]
    assert "all_reduce" in stacks[0]
    assert "in fail" in stacks[1]


@pytest.mark.slow
def test_two_agents_restart_a_job_after_a_death_and_a_hang(
    arguments: Callable[..., list[str]], directory: Path, fault: Callable[[str], None], shared_runs: SharedRuns
) -> None:
    """`torchrun --max-restarts 3` on two nodes over loopback. The result equals that of a run without faults."""
    fault("die 1 5,hang 0 9")
    # without this variable, torchrun gives restarted ranks the addresses of dead ranks
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    output = two_agents(
        arguments("back", "training.hang_timeout_seconds=10"), "--max-restarts", "3", variables=variables
    )
    after_death, after_hang = re.findall(r"resuming from \S+step_(\d+)", output)
    # a rank that dies at step 5 may leave the save of step 4 unfinished
    assert after_death in ("2", "4")
    assert after_hang == "8"
    assert_bit_identical(directory / "back", shared_runs["resumable_on_two_ranks"], RESUMABLE_STEPS)
    assert [line["step"] for line in metrics_of(directory / "back") if "lr" in line] == list(range(1, 13))
