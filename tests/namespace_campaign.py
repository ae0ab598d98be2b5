"""Disconnect, slow down, switch off and restart nodes of a job, and check that the job recovers.

    python -m tests.namespace_campaign
    python -m tests.namespace_campaign --scenarios cable_removed node_killed --hang-timeout-seconds 30

Every scenario is a separate run of torchrun with `--nnodes 1:N --max-restarts`. The nodes are network namespaces of
this machine, which needs root. The job must detect the fault and resume from its last checkpoint on the remaining
nodes. Its metrics and weights must equal those of an undisturbed run of one rank within a tolerance. The campaign ends
with an error at the first failed check.
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
from tests.fomaml_reference import relative_error
from tests.launching import BIN, REPOSITORY, warm
from tests.network_namespaces import Nodes, cluster, why_no_namespaces, why_no_netem
from tests.run_results import TIMINGS, TINY, metrics_of

PORT = 29500
#: outer steps between two saves
SAVE_EVERY = 4
#: largest accepted deviation of metrics and weights: another number of ranks sums in another order
TOLERANCE = 2e-4
_TORCH_KEEP_ALIVE_SECONDS = 5
#: longest wait for any event
_WAIT_SECONDS = 180.0
#: log lines of ranks and agents that have detected a fault
_DETECTED = re.compile(rb"no progress for|a collective failed because|has died, and this rank|failed \(exitcode")


@dataclass
class Outcome:
    """A row of the printed table. The seconds are None if the job did not restart."""

    scenario: str
    seconds_to_detect: float | None
    seconds_to_resume: float | None
    steps_lost: int
    starts: int
    largest_deviation: float


class Job:
    """One run on the nodes of a cluster."""

    def __init__(
        self, directory: Path, name: str, nodes: Nodes, arguments: list[str], store_node: int, keep_alive_seconds: int
    ) -> None:
        """
        Args:
            store_node: the node of the rendezvous endpoint, which holds the key-value store.
            keep_alive_seconds: interval of torchrun's heartbeats. A node is treated as dead after three of them.
        """
        self.directory, self.name, self.nodes, self.arguments = directory, name, nodes, arguments
        # training starts after 3 s without a new node; the default of torchrun is longer
        self.rendezvous = f"last_call_timeout=3,keep_alive_interval={keep_alive_seconds}"
        self.endpoint = f"{nodes[store_node].name}:{PORT}"
        self.agents: dict[int, subprocess.Popen[bytes]] = {}
        self.run = directory / name

    def start(self, *numbers: int) -> None:
        """Start the agents of some nodes. The agent of the store node must be among them or already run."""
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
        """Path of the log of a node."""
        return self.directory / f"{self.name}-node{number}.log"

    def logs(self) -> dict[int, bytes]:
        """The log of every started node so far."""
        return {number: self.log(number).read_bytes() for number in self.agents}

    def wait_for(self, event: str, condition: Callable[[], bool]) -> float:
        """Wait until a condition is true. Returns the time of the monotonic clock [s]. Raises after `_WAIT_SECONDS`."""
        end = time.monotonic() + _WAIT_SECONDS
        while not condition():
            over = time.monotonic() > end or all(agent.poll() is not None for agent in self.agents.values())
            assert not over, f"{self.name}: no {event}; see {self.directory}/{self.name}-*.log"
            time.sleep(0.05)
        return time.monotonic()

    def wait_for_step(self, step: int) -> None:
        """Wait until the metrics of a step are written."""
        metrics = self.run / "logs" / "metrics.jsonl"
        self.wait_for(f"step {step}", lambda: metrics.exists() and f'"step": {step},' in metrics.read_text())

    def starts(self) -> int:
        """How often the job has started to train."""
        return sum(text.count(b"first step done") for text in self.logs().values())

    def recover_from(self, fault: Callable[[], object], survivors: list[int]) -> tuple[float, float]:
        """Cause a fault. Returns the seconds until one of `survivors` detects it and until the job trains again."""
        log_lengths = {number: len(text) for number, text in self.logs().items()}
        starts = self.starts()
        started = time.monotonic()
        fault()
        detected = self.wait_for(
            "detection of the fault",
            lambda: any(_DETECTED.search(self.log(number).read_bytes()[log_lengths[number] :]) for number in survivors),
        )
        resumed = self.wait_for("restart of the job", lambda: self.starts() > starts)
        return detected - started, resumed - started

    def finish(self, *numbers: int) -> None:
        """Wait until the agents of these nodes end without an error."""
        codes = {number: self.agents[number].wait(timeout=_WAIT_SECONDS) for number in numbers}
        assert set(codes.values()) == {0}, f"{self.name}: exit codes {codes}; see {self.directory}/{self.name}-*.log"

    def steps_lost(self) -> int:
        """The number of outer steps that were trained twice."""
        superseded = self.run / "logs" / "metrics.superseded.jsonl"
        return superseded.read_text().count('"lr"') if superseded.exists() else 0


def deviation(actual: Path, expected: Path, last_step: int) -> float:
    """The largest relative difference of metrics and final weights. Both runs must have logged the same steps."""
    actual_lines, expected_lines = metrics_of(actual), metrics_of(expected)
    assert [line["step"] for line in actual_lines] == [line["step"] for line in expected_lines]
    largest = 0.0
    for line, expected_line in zip(actual_lines, expected_lines, strict=True):
        assert line.keys() == expected_line.keys()
        for name in expected_line.keys() - TIMINGS:
            largest = max(largest, abs(line[name] - expected_line[name]) / max(abs(expected_line[name]), 1e-2))
    weights = (load_file(path / f"checkpoints/step_{last_step}/model.safetensors") for path in (actual, expected))
    return max(largest, relative_error(*weights))


#: seconds until the fault is detected, and until the job trains again
Durations = tuple[float | None, float | None]


def cable_removed(job: Job) -> Durations:
    """The cable of rank 0's node is removed for good."""
    job.start(0, 1, 2)
    job.wait_for_step(9)
    durations = job.recover_from(job.nodes[0].cut, survivors=[1, 2])
    job.finish(1, 2)
    # the agent of node 0 still waits for the store for more than a minute, but its rank has ended
    assert b"rank 0: no progress for" in job.logs()[0]
    return durations


def node_returns(job: Job) -> Durations:
    """A node loses power and returns. The job resumes without the node, and later with it."""
    job.start(0, 1, 2)
    job.wait_for_step(9)
    durations = job.recover_from(job.nodes[1].switch_off, survivors=[0, 2])
    steps_lost = job.steps_lost()
    job.nodes.replace(1)
    starts = job.starts()
    job.start(1)
    job.wait_for("restart with the returned node", lambda: job.starts() > starts)
    job.finish(0, 1, 2)
    assert job.steps_lost() == steps_lost, "ranks that stop because a node joins must save"
    return durations


def node_killed(job: Job) -> Durations:
    """All processes of a node die. Its operating system closes their connections."""
    job.start(0, 1, 2)
    job.wait_for_step(9)
    durations = job.recover_from(job.nodes[1].close, survivors=[0, 2])
    job.finish(0, 2)
    return durations


def short_outage(job: Job) -> Durations:
    """A cable is removed for three seconds. The job does not restart."""
    job.start(0, 1)
    job.wait_for_step(9)
    job.nodes[0].cut()
    time.sleep(3)
    job.nodes[0].reconnect()
    job.finish(0, 1)
    assert job.starts() == 1
    return None, None


def slow_network(job: Job) -> Durations:
    """Packets of a node are 20 ms late, and 2 % of them are lost. The job does not restart."""
    missing = why_no_netem()
    if missing is None:
        job.nodes[1].delay_by_kernel(20, 2)
    else:
        print(f"{missing}: tests/slow_network_relay.py delays and drops frames instead", flush=True)
        job.nodes[1].delay_by_relay(20, 2)
    job.start(0, 1)
    job.finish(0, 1)
    assert job.starts() == 1
    return None, None


def rendezvous_lost(job: Job) -> Durations:
    """The node of the rendezvous loses power. The ranks end, and the job is started again with another endpoint."""
    job.start(0, 1, 2)
    job.wait_for_step(9)
    started = time.monotonic()
    job.nodes[2].switch_off()
    detected = job.wait_for(
        "detection of the fault", lambda: all(_DETECTED.search(job.log(number).read_bytes()) for number in (0, 1))
    )
    # torchrun waits about 15 minutes for the lost store, until TCP gives up, so that a user must end it
    for number in (0, 1):
        job.agents[number].kill()
        job.agents[number].wait()
        job.nodes.replace(number)
    job.endpoint = f"{job.nodes[0].name}:{PORT}"
    starts = job.starts()
    job.start(0, 1)
    resumed = job.wait_for("restart of the job", lambda: job.starts() > starts)
    job.finish(0, 1)
    return detected - started, resumed - started


#: by name: the scenario, the number of nodes, and the number of the node with the rendezvous endpoint
SCENARIOS: dict[str, tuple[Callable[[Job], Durations], int, int]] = {
    "cable_removed": (cable_removed, 3, 2),
    "node_returns": (node_returns, 3, 0),
    "node_killed": (node_killed, 3, 0),
    "short_outage": (short_outage, 2, 1),
    "slow_network": (slow_network, 2, 0),
    "rendezvous_lost": (rendezvous_lost, 3, 2),
}


def run_campaign(
    scenarios: list[str],
    directory: Path,
    hang_timeout_seconds: float,
    max_steps: int,
    keep_alive_seconds: int = _TORCH_KEEP_ALIVE_SECONDS,
) -> list[Outcome]:
    """Run scenarios, and compare each run with an undisturbed run of one rank. Returns one outcome per scenario."""
    corpus = write_text_corpus(directory / "corpus.jsonl")

    def arguments(name: str) -> list[str]:
        settings = [f"data.paths=[{corpus}]", f"checkpointing.runs_dir={directory}", f"checkpointing.run_name={name}"]
        # at this learning rate, rounding differences stay at the precision of fp32
        settings += ["training.lr=3e-4", f"training.max_steps={max_steps}", "evaluation.every_n_steps=1000"]
        settings += [f"checkpointing.save_every_n_steps={SAVE_EVERY}"]
        settings += [f"training.hang_timeout_seconds={hang_timeout_seconds:g}"]
        return ["--config", TINY, *settings]

    warm.python("scripts/train.py", *arguments("undisturbed"))
    outcomes = []
    for name in scenarios:
        scenario, n_nodes, store_node = SCENARIOS[name]
        print(f"{name}: {scenario.__doc__}", flush=True)
        with cluster(n_nodes) as nodes:
            job = Job(directory, name, nodes, arguments(name), store_node, keep_alive_seconds)
            detected, resumed = scenario(job)
            largest = deviation(job.run, directory / "undisturbed", max_steps)
            assert largest <= TOLERANCE, f"{name}: metrics or weights deviate by {largest:.1e}"
            outcomes.append(Outcome(name, detected, resumed, job.steps_lost(), job.starts(), largest))
            print(outcomes[-1], flush=True)
    return outcomes


def print_outcomes(outcomes: list[Outcome]) -> None:
    """Print a table with one row per scenario."""
    table = Table(*(field.name.replace("_", " ") for field in fields(Outcome)), box=SIMPLE_HEAD)
    for outcome in outcomes:
        detected, resumed = (
            "" if seconds is None else f"{seconds:.1f}"
            for seconds in (outcome.seconds_to_detect, outcome.seconds_to_resume)
        )
        counts = (str(outcome.steps_lost), str(outcome.starts))
        table.add_row(outcome.scenario, detected, resumed, *counts, f"{outcome.largest_deviation:.1e}")
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
