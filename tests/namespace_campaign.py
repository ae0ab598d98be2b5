"""Nodes of a job that are cut off, slowed down, switched off and brought back; and what becomes of the job.

    python -m tests.namespace_campaign
    python -m tests.namespace_campaign --scenarios cable power --hang-timeout-seconds 30

Every scenario is a run of its own, by torchrun on nodes that are namespaces of this machine (root), with
`--nnodes 1:N --max-restarts`. The job must notice, go on from its last checkpoint on the nodes that are left, and take
the course of a run of one rank that nothing befell. The first thing that is not so ends the campaign with an error.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from tests.conftest import write_text_corpus
from tests.launching import BIN, REPOSITORY, warm
from tests.namespaces import Nodes, cluster, why_no_namespaces, why_no_netem
from tests.reference import relative_error
from tests.run_results import TIMINGS, TINY, metrics_of

PORT = 29500
#: between two saves
SAVE_EVERY = 4
#: largest that the course may be off: sums over ranks are rounded in another order
TOLERANCE = 2e-4
_TORCHS_KEEP_ALIVE_SECONDS = 5
#: for anything that is waited for
_PATIENCE_SECONDS = 180.0
#: what the ranks and agents say when they have noticed
_NOTICED = re.compile(rb"no progress for|a collective failed because|has died, and this rank|failed \(exitcode")


@dataclass
class Outcome:
    """A row of the table; None where there is nothing of the kind."""

    scenario: str
    seconds_to_detect: float | None
    seconds_to_go_on: float | None
    steps_lost: int
    starts: int
    largest_deviation: float


class Job:
    """One run on the nodes of a cluster."""

    def __init__(
        self, directory: Path, name: str, nodes: Nodes, arguments: list[str], store_at: int, keep_alive_seconds: int
    ) -> None:
        """
        Args:
            store_at: the node that the others meet at; it has the rendezvous's store.
            keep_alive_seconds: a node that has not been heard of for three times as long is dead to torchrun.
        """
        self.directory, self.name, self.nodes, self.arguments = directory, name, nodes, arguments
        # after 3 seconds without another node those that are there begin; a user's nodes are given longer
        self.rendezvous = f"last_call_timeout=3,keep_alive_interval={keep_alive_seconds}"
        self.endpoint = f"{nodes[store_at].name}:{PORT}"
        self.agents: dict[int, subprocess.Popen[bytes]] = {}
        self.run = directory / name

    def start(self, *numbers: int) -> None:
        """Start the agents of some nodes; that of the store is among them or runs already."""
        options = ["--nnodes", f"1:{len(self.nodes)}", "--nproc_per_node", "1", "--max-restarts", "5"]
        options += ["--rdzv_backend", "c10d", "--rdzv_endpoint", self.endpoint, "--rdzv_id", self.name]
        options += ["--rdzv_conf", self.rendezvous]
        variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        variables |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "GLOO_SOCKET_IFNAME": "eth0"}
        command = ["torchrun", *options, "tests/end_to_end/paced_train.py", *self.arguments]
        for number in numbers:
            with self.log(number).open("ab") as log:
                self.agents[number] = self.nodes[number].start(*command, log=log, PACE_SECONDS="0.2", **variables)

    def log(self, number: int) -> Path:
        """What a node printed."""
        return self.directory / f"{self.name}-node{number}.log"

    def said(self) -> dict[int, bytes]:
        """What all nodes printed up to now."""
        return {number: self.log(number).read_bytes() for number in self.agents}

    def wait_for(self, what: str, condition: Callable[[], bool]) -> float:
        """Look again and again; returns the moment [s]."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            over = time.monotonic() > end or all(agent.poll() is not None for agent in self.agents.values())
            assert not over, f"{self.name}: never came: {what}; see {self.directory}/{self.name}-*.log"
            time.sleep(0.05)
        return time.monotonic()

    def wait_for_step(self, step: int) -> None:
        """Come back when a step is done."""
        metrics = self.run / "logs" / "metrics.jsonl"
        self.wait_for(f"step {step}", lambda: metrics.exists() and f'"step": {step},' in metrics.read_text())

    def starts(self) -> int:
        """How often the ranks began to train."""
        return sum(text.count(b"first step done") for text in self.said().values())

    def go_on_after(self, fault: Callable[[], object], survivors: list[int]) -> tuple[float, float]:
        """Do the damage; returns the seconds until a survivor noticed, and until the job took steps again."""
        before = {number: len(text) for number, text in self.said().items()}
        starts = self.starts()
        began = time.monotonic()
        fault()
        noticed = self.wait_for(
            "that the survivors notice",
            lambda: any(_NOTICED.search(self.log(number).read_bytes()[before[number] :]) for number in survivors),
        )
        going = self.wait_for("that the job goes on", lambda: self.starts() > starts)
        return noticed - began, going - began

    def finish(self, *numbers: int) -> None:
        """All agents of these nodes come to their end."""
        codes = {number: self.agents[number].wait(timeout=_PATIENCE_SECONDS) for number in numbers}
        assert set(codes.values()) == {0}, f"{self.name}: exit codes {codes}; see {self.directory}/{self.name}-*.log"

    def steps_lost(self) -> int:
        """Steps that were computed twice."""
        superseded = self.run / "logs" / "metrics.superseded.jsonl"
        return superseded.read_text().count('"lr"') if superseded.exists() else 0


def deviation(got: Path, wanted: Path, last_step: int) -> float:
    """The largest relative difference of any metric and of the final weights; the lines must be the same ones."""
    lines, expected = metrics_of(got), metrics_of(wanted)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    largest = 0.0
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        for name in other.keys() - TIMINGS:
            largest = max(largest, abs(line[name] - other[name]) / max(abs(other[name]), 1e-2))
    weights = (load_file(path / f"checkpoints/step_{last_step}/model.safetensors") for path in (got, wanted))
    return max(largest, relative_error(*weights))


Figures = tuple[float | None, float | None]


def cable(job: Job) -> Figures:
    """The cable of rank 0's node is pulled, and stays out."""
    job.start(0, 1, 2)
    job.wait_for_step(9)
    figures = job.go_on_after(job.nodes[0].cut, survivors=[1, 2])
    job.finish(1, 2)
    # its agent asks for the store, with torch's patience, a minute and more; but nothing of it trains, or writes
    assert b"rank 0: no progress for" in job.said()[0]
    return figures


def back(job: Job) -> Figures:
    """A node loses its power and comes back: the others go on without it, and then with it."""
    job.start(0, 1, 2)
    job.wait_for_step(9)
    figures = job.go_on_after(job.nodes[1].switch_off, survivors=[0, 2])
    lost = job.steps_lost()
    job.nodes.replace(1)
    starts = job.starts()
    job.start(1)
    job.wait_for("that the job takes the node in", lambda: job.starts() > starts)
    job.finish(0, 1, 2)
    assert job.steps_lost() == lost, "ranks that are stopped to take a node in must save"
    return figures


def killed(job: Job) -> Figures:
    """All processes of a node die, and its system says so to the others."""
    job.start(0, 1, 2)
    job.wait_for_step(9)
    figures = job.go_on_after(job.nodes[1].close, survivors=[0, 2])
    job.finish(0, 2)
    return figures


def blip(job: Job) -> Figures:
    """A cable is out for three seconds: nothing starts again."""
    job.start(0, 1)
    job.wait_for_step(9)
    job.nodes[0].cut()
    time.sleep(3)
    job.nodes[0].mend()
    job.finish(0, 1)
    assert job.starts() == 1
    return None, None


def slow(job: Job) -> Figures:
    """20 ms late, 2 % lost, by the kernel where it can, else by a relay: nothing starts again."""
    missing = why_no_netem()
    if missing is None:
        job.nodes[1].delay_by_kernel(20, 2)
    else:
        print(f"{missing} a relay delays and drops instead", flush=True)
        job.nodes[1].delay_by_relay(20, 2)
    job.start(0, 1)
    job.finish(0, 1)
    assert job.starts() == 1
    return None, None


def store(job: Job) -> Figures:
    """The node that all meet at loses its power: the ranks end, torchrun waits in vain, and a new start goes on."""
    job.start(0, 1, 2)
    job.wait_for_step(9)
    began = time.monotonic()
    job.nodes[2].switch_off()
    noticed = job.wait_for(
        "that the survivors notice", lambda: all(_NOTICED.search(job.log(number).read_bytes()) for number in (0, 1))
    )
    # torchrun asks the store that has gone for as long as TCP sends again, a quarter of an hour: the user ends it
    for number in (0, 1):
        job.agents[number].kill()
        job.agents[number].wait()
        job.nodes.replace(number)
    job.endpoint = f"{job.nodes[0].name}:{PORT}"
    starts = job.starts()
    job.start(0, 1)
    going = job.wait_for("that the job goes on", lambda: job.starts() > starts)
    job.finish(0, 1)
    return noticed - began, going - began


#: by name: what happens, nodes, and the node that all meet at
SCENARIOS: dict[str, tuple[Callable[[Job], Figures], int, int]] = {
    "cable": (cable, 3, 2),
    "back": (back, 3, 0),
    "killed": (killed, 3, 0),
    "blip": (blip, 2, 1),
    "slow": (slow, 2, 0),
    "store": (store, 3, 2),
}


def run_campaign(
    scenarios: list[str],
    directory: Path,
    hang_timeout_seconds: float,
    max_steps: int,
    keep_alive_seconds: int = _TORCHS_KEEP_ALIVE_SECONDS,
) -> list[Outcome]:
    """Play scenarios, and compare each run with one that nothing befell."""
    corpus = write_text_corpus(directory / "corpus.jsonl")

    def arguments(name: str) -> list[str]:
        where = [f"data.paths=[{corpus}]", f"checkpointing.runs_dir={directory}", f"checkpointing.run_name={name}"]
        # a rate at which roundings do not grow beyond fp32's
        settings = ["training.lr=3e-4", f"training.max_steps={max_steps}", "evaluation.every_n_steps=1000"]
        settings += [f"checkpointing.save_every_n_steps={SAVE_EVERY}"]
        settings += [f"training.hang_timeout_seconds={hang_timeout_seconds:g}"]
        return ["--config", TINY, *where, *settings]

    warm.python("scripts/train.py", *arguments("undisturbed"))
    outcomes = []
    for name in scenarios:
        play, count, store_at = SCENARIOS[name]
        print(f"{name}: {play.__doc__}", flush=True)
        with cluster(count) as nodes:
            job = Job(directory, name, nodes, arguments(name), store_at, keep_alive_seconds)
            detected, going = play(job)
            largest = deviation(job.run, directory / "undisturbed", max_steps)
            assert largest <= TOLERANCE, f"{name}: the course is off by {largest:.1e}"
            outcomes.append(Outcome(name, detected, going, job.steps_lost(), job.starts(), largest))
            print(outcomes[-1], flush=True)
    return outcomes


def print_outcomes(outcomes: list[Outcome]) -> None:
    """One row a scenario."""
    table = Table(*(field.name.replace("_", " ") for field in fields(Outcome)), box=SIMPLE_HEAD)
    for outcome in outcomes:
        detected, going = (
            "" if seconds is None else f"{seconds:.1f}"
            for seconds in (outcome.seconds_to_detect, outcome.seconds_to_go_on)
        )
        counts = (str(outcome.steps_lost), str(outcome.starts))
        table.add_row(outcome.scenario, detected, going, *counts, f"{outcome.largest_deviation:.1e}")
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--hang-timeout-seconds", type=float, default=10.0, help="training.hang_timeout_seconds")
    parser.add_argument("--max-steps", type=int, default=60, help="outer steps of a run")
    parser.add_argument("--directory", type=Path, help="where the runs are kept; default: a temporary directory")
    arguments = parser.parse_args()
    if (missing := why_no_namespaces()) is not None:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="namespace-campaign-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"runs and logs are in {directory}", flush=True)
    scenarios, seconds = arguments.scenarios, arguments.hang_timeout_seconds
    print_outcomes(run_campaign(scenarios, directory, seconds, arguments.max_steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
