"""The failure report: the rank it names first, and the files it writes."""

from pathlib import Path

import pytest
import torch

from pico_ds.engine.distributed import Process
from pico_ds.faults.failure_report import Cause, FailureReport, RankFailure, describe_first_failure, read_failures
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.runs.run_status import RunStatus


def failure(rank: int, cause: Cause, at: float, collectives: int = 0) -> RankFailure:
    return RankFailure(rank, cause, f"error of {rank}", at, 5, collectives, f"collective {collectives}")


@pytest.mark.parametrize(
    ("failures", "dead", "silent", "first", "others"),
    [
        # a rank that lost another rank may write its log first
        (
            [failure(0, "lost_peer", 1.0), failure(2, "error", 2.0), failure(1, "error", 3.0)],
            [],
            [],
            "rank 2, after 5 steps: error of 2",
            ["rank 1, after 5 steps: error of 1", "rank 0 ended as a result, after 5 steps"],
        ),
        (
            [failure(0, "lost_peer", 1.0)],
            [1, 3],
            [],
            "rank 1 died without an error message",
            ["rank 3 died", "rank 0 ended"],
        ),
        # the rank that has started the fewest collectives is the one for which the others wait
        (
            [failure(0, "hang", 1.0, 9), failure(1, "hang", 2.0, 7), failure(3, "hang", 3.0, 9)],
            [],
            [2],
            "rank 1, after 5",
            ["other ranks wait in collective 9; rank 1 has only reached collective 7", "rank 0, 3 ended"],
        ),
        ([failure(0, "hang", 1.0, 9)], [], [1], "rank 1 hangs outside of Python", ["rank 0 ended"]),
        (
            [failure(0, "hang", 1.0, 9), failure(1, "hang", 2.0, 9)],
            [],
            [],
            "rank 0, after 5",
            ["all ranks with a log wait in collective 9: the network or a device hangs", "rank 1 ended"],
        ),
        ([failure(0, "lost_peer", 1.0), failure(1, "hang", 2.0, 9)], [], [], "rank 1, after 5", ["rank 0 ended"]),
        # the rank that failed first is on another node, about which this node knows nothing
        ([failure(0, "lost_peer", 1.0)], [], [1], "rank 0, after 5 steps: error of 0", []),
    ],
)
def test_first_rank_is_the_one_with_its_own_error(
    failures: list[RankFailure], dead: list[int], silent: list[int], first: str, others: list[str]
) -> None:
    named, rest = describe_first_failure(failures, dead, silent)
    assert named.startswith(first)
    assert len(rest) == len(others)
    assert all(message.startswith(expected) for message, expected in zip(rest, others, strict=True))


def test_report_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path / "run")
    report = FailureReport(run, Process(0, 1, 0, torch.device("cpu")), {"device": "cpu"}, started=0)
    report.begin(lambda: 7)
    report.write(ValueError("first"), "error")
    report.write("no progress", "hang")
    (found,) = read_failures(run.failures / "19700101-000000")
    assert (found.error, found.step, found.cause) == ("ValueError: first", 7, "error")
    assert "rank 0, after 7 steps: ValueError: first" in capsys.readouterr().err
    status = RunStatus.read(run)
    assert status is not None
    assert (status.state, status.reason, status.is_here, status.is_alive) == (
        *("failed", "ValueError: first"),
        True,
        True,
    )


def test_error_is_reported_even_if_its_log_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The caller raises the error that ended the run. The report prints that its log could not be written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("in the way")
    report = FailureReport(RunDirectory(tmp_path / "run"), Process(0, 1, 0, torch.device("cpu")), {}, started=0)
    report.write(ValueError("first"), "error")
    output = capsys.readouterr().err
    assert f"rank 0: cannot record this failure: {tmp_path}/run/logs: File exists" in output
    assert "first      rank 0, after 0 steps: ValueError: first" in output


def test_report_names_the_rank_for_which_nccl_ranks_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 5 of 8 hangs in its data. The others have started two more collectives, and wait for their device."""
    run = RunDirectory(tmp_path / "run")

    def hang(rank: int) -> None:
        process = Process(rank, 8, rank, torch.device("cpu"))
        process.started.add()
        if rank != 5:
            process.started.add()
            process.started.add()
        report = FailureReport(run, process, {}, started=0)
        report.begin(lambda: 12)
        report.write_from_watchdog("no progress for 9 s", is_lost_peer=False)

    # rank 0 writes the summary, so its log comes last
    for rank in (3, 4, 5, 6, 7, 2, 1, 0):
        run.failures.joinpath("19700101-000000", "summary.txt").unlink(missing_ok=True)
        capsys.readouterr()
        hang(rank)
    summary = capsys.readouterr().err
    assert "first      rank 5, after 12 steps: no progress for 9 s" in summary
    assert "rank 5 has only reached test_report_names_the_rank_for_which_nccl_ranks_wait.<locals>.hang" in summary
    assert "rank 0, 1, 2, 3, 4, 6, 7 ended as a result, after 12 steps" in summary
