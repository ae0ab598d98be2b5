"""Kill jobs, stop ranks and fill disks at chosen moments. Count lost checkpoints and processes that do not end.

    python -m tests.fault_campaign --kills 200 --stops 20 --disks

`tests.random_kill_campaign` kills ranks at random times. This campaign waits for a moment (the start, a step, a save,
an evaluation, a snapshot, a push to a hub, the end) and signals a process of the job: a rank, the launcher, or the
process that the deepspeed launcher starts for the node. Afterwards all processes of the job must end, and all complete
checkpoints must still be complete and pass verification. Each run is trained to its last step, and its weights are
compared with those of an undisturbed run. `--disks` needs root. All parts together take about 30 minutes on 2 cores.
"""

import argparse
import random
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from pico_ds.checkpoint.checkpoint_commands import verify
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.runs.run_status import RunStatus
from tests.conftest import write_text_corpus
from tests.fake_model_hub import TOKEN, FakeHub, fake_hub
from tests.launching import free_port, rank_variables, real, warm
from tests.run_results import TINY, weights_of

#: all processes of a job must end within this time after a signal [s]
END_SECONDS = 30.0
MOMENTS: dict[str, Callable[["Attempt"], bool]] = {
    "start": lambda attempt: time.monotonic() - attempt.started > attempt.start_up_seconds,
    "step": lambda attempt: attempt.has_logged("first step done"),
    "save": lambda attempt: attempt.has_new(".step_*[0-9a-f].partial"),
    "evaluation": lambda attempt: attempt.has_logged("evaluating step"),
    "snapshot": lambda attempt: attempt.has_new(".step_*.learning_dynamics.partial"),
    "push": lambda attempt: attempt.has_logged("saved "),
    "end": lambda attempt: attempt.has_logged("Files: "),
}
SIGNALS = {
    "a rank": [signal.SIGKILL, signal.SIGTERM, signal.SIGINT],
    "all ranks": [signal.SIGKILL],
    "the launcher": [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
    "the node launcher": [signal.SIGKILL, signal.SIGTERM],
}


class Attempt:
    """One start of a job of two ranks. Its checkpoints are in `runs`, and its log is in `directory`."""

    def __init__(
        self,
        directory: Path,
        runs: Path,
        name: str,
        launcher: str,
        stage: int,
        arguments: list[str],
        hub: FakeHub | None = None,
    ) -> None:
        self.store, self.log = CheckpointStore(runs / name / "checkpoints"), directory / f"{name}.log"
        # unfinished files of earlier starts
        self._before = {*self.store.directory.glob(".step_*")}
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        self.start_up_seconds = random.uniform(0.1, 6.0 if launcher != "warm" else 0.8)
        command = ["scripts/train.py", "--config", TINY, "--deepspeed_config", f"ds_configs/zero{stage}.json"]
        command += [f"data.paths=[{directory}/corpus.jsonl]", f"checkpointing.run_name={name}", *arguments]
        mark = uuid.uuid4().hex
        variables = {"CAMPAIGN": mark}
        if hub is not None:
            command += ["checkpointing.hub.repo_id=lab/pico"]
            variables |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        self.started = time.monotonic()
        self._mark, self._ranks = mark, []
        if launcher == "warm":
            port = free_port()
            self._ranks = [
                warm.start(*command, log=self.log, **variables, **rank_variables(rank, 2, port)) for rank in range(2)
            ]
        else:
            first = ["torchrun", "--nproc_per_node"] if launcher == "torchrun" else ["deepspeed", "--num_accelerators"]
            options = [*first, "2", "--master_port", str(free_port())]
            self._process = real.start_command(*options, *command, log=self.log, **variables)

    def has_logged(self, text: str) -> bool:
        """Whether this start has logged `text`."""
        return self.log.exists() and text.encode() in self.log.read_bytes()[self._offset :]

    def has_new(self, pattern: str) -> bool:
        """Whether this start has made a file in the checkpoint directory that matches `pattern`."""
        return not self._before.issuperset(self.store.directory.glob(pattern))

    def alive(self) -> list[psutil.Process]:
        """Running processes of the job, oldest first: the launcher comes before the ranks."""
        if self._ranks:
            running = {rank.pid for rank in self._ranks if rank.poll() is None}
            return [process for process in psutil.process_iter() if process.pid in running]
        self._process.poll()
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("CAMPAIGN") == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.create_time())

    def victims(self, role: str) -> list[psutil.Process]:
        """Processes of `role` to signal. The list is empty if the job has no such process or has ended."""
        alive = self.alive()
        is_rank = {process.pid: self._is_rank(process) for process in alive}
        ranks = [process for process in alive if is_rank[process.pid]]
        others = [process for process in alive if not is_rank[process.pid]]
        if role == "a rank":
            return random.sample(ranks, min(1, len(ranks)))
        return {"all ranks": ranks, "the launcher": others[:1], "the node launcher": others[1:2]}[role]

    def _is_rank(self, process: psutil.Process) -> bool:
        try:
            return bool(self._ranks) or "RANK" in process.environ()
        except psutil.Error:
            return False

    def wait(self, seconds: float) -> float:
        """Wait until all processes have ended, at most `seconds`. Returns the seconds waited."""
        started = time.monotonic()
        while self.alive() and time.monotonic() - started < seconds:
            time.sleep(0.1)
        return time.monotonic() - started


class Run:
    """A run under one ZeRO stage that is repeatedly disturbed."""

    def __init__(self, directory: Path, stage: int, runs: Path | None = None) -> None:
        self.directory, self.runs, self.stage, self.max_steps = directory, runs or directory, stage, 6
        directory.mkdir(parents=True, exist_ok=True)
        write_text_corpus(directory / "corpus.jsonl")
        self.store, self.complete = CheckpointStore(self.runs / "disturbed" / "checkpoints"), set[int]()

    def arguments(self, *others: str) -> list[str]:
        return [
            f"checkpointing.runs_dir={self.runs}",
            f"training.max_steps={self.max_steps}",
            "training.lr_schedule=constant",
            "checkpointing.save_every_n_steps=2",
            "learning_dynamics.save_every_n_steps=4",
            "evaluation.every_n_steps=3",
            *others,
        ]

    def start(self, launcher: str, *others: str, name: str = "disturbed", hub: FakeHub | None = None) -> Attempt:
        return Attempt(self.directory, self.runs, name, launcher, self.stage, self.arguments(*others), hub)

    def disturb(self, launcher: str, moment: str, role: str, counts: Counter[str], hub: FakeHub) -> None:
        """Signal the processes of `role` at `moment`, wait until the job ends, and check the checkpoints."""
        # a finished run must train further
        self.max_steps = max([0, *self.complete]) + 6
        attempt = self.start(launcher, hub=hub if moment == "push" else None)
        while not MOMENTS[moment](attempt) and attempt.alive():
            time.sleep(0.005)
        number = random.choice(SIGNALS[role])
        victims = attempt.victims(role)
        for victim in victims:
            victim.send_signal(number)
        if launcher == "warm" and not attempt.has_logged("first step done"):
            # as a launcher would: the other rank may still wait for the killed one to start
            for process in attempt.alive():
                process.kill()
        seconds = attempt.wait(END_SECONDS + 15)
        survivors = attempt.alive()
        counts["kills"] += bool(victims)
        counts["ended before the kill"] += not victims
        counts[f"at {moment}"] += bool(victims)
        counts[f"of {role} by {launcher}, {number.name}"] += bool(victims)
        counts["longest shutdown in s"] = max(counts["longest shutdown in s"], round(seconds))
        counts["PROCESSES LEFT"] += len(survivors)
        for process in survivors:
            print(f"process left: {launcher}, {moment}, {role}, {number.name}: {process.cmdline()[:6]}", flush=True)
            process.kill()
        self.check(counts)

    def check(self, counts: Counter[str]) -> None:
        """Count complete checkpoints that are lost, and new checkpoints that fail verification."""
        complete = set(self.store.steps())
        counts["LOST"] += len(self.complete - complete)
        for step in complete - self.complete:
            problems = [problem for problem in verify(self.store.path(step)) if "learning_dynamics" not in problem]
            counts["DAMAGED"] += bool(problems)
        self.complete = complete

    def n_tracebacks(self) -> int:
        """The number of tracebacks of ranks in the log, without those that torchrun itself prints."""
        log = (self.directory / "disturbed.log").read_text(errors="replace")
        _, *tracebacks = log.split("Traceback (most recent call")
        return sum("/scripts/train.py" in text[:5000] for text in tracebacks)

    def finish(self, counts: Counter[str]) -> None:
        """Train the run to its last step, and compare its weights with those of an undisturbed run."""
        counts["TRACEBACKS"] += self.n_tracebacks()
        self.max_steps = max([0, *self.complete]) + 2
        for name in ("disturbed", "undisturbed"):
            attempt = self.start("warm", name=name)
            attempt.wait(600)
        actual, expected = (weights_of(self.runs / name, self.max_steps) for name in ("disturbed", "undisturbed"))
        is_equal = all(torch.equal(actual[name], expected[name]) for name in expected)
        counts["runs bit-identical"] += is_equal
        counts["RUNS THAT DIFFER"] += not is_equal


def kill(n_kills: int, directory: Path, real_share: float) -> Counter[str]:
    """Send `n_kills` signals, with random launchers, ZeRO stages, moments and roles. Returns counts by event."""
    counts = Counter[str]()
    runs = [Run(directory / f"stage-{stage}", stage) for stage in range(4)]
    with fake_hub() as hub:
        while counts["kills"] < n_kills:
            launcher = random.choice(["torchrun", "deepspeed"]) if random.random() < real_share else "warm"
            roles = ["a rank", "all ranks"] if launcher == "warm" else [*SIGNALS]
            if launcher == "torchrun":
                roles.remove("the node launcher")
            run = random.choice(runs)
            run.disturb(launcher, random.choice([*MOMENTS]), random.choice(roles), counts, hub)
            print(f"{counts['kills']} of {n_kills}: lost {counts['LOST']}, left {counts['PROCESSES LEFT']}", flush=True)
        for run in runs:
            run.finish(counts)
    return counts


def stop(n_stops: int, directory: Path) -> Counter[str]:
    """Send SIGSTOP to one of two ranks, five jobs at a time. Returns counts by event.

    Every second job is resumed after 2 s, and one of its ranks gets SIGTERM.
    """
    counts = Counter[str]()
    for first in range(0, n_stops, 5):
        runs = [Run(directory / f"job-{number}", number % 4) for number in range(first, min(first + 5, n_stops))]
        attempts = [run.start("warm", "training.max_steps=100000", "training.hang_timeout_seconds=8") for run in runs]
        stopped = []
        for attempt in attempts:
            while not attempt.has_logged("step 5/") and attempt.alive():
                time.sleep(0.01)
            (victim,) = attempt.victims("a rank")
            victim.suspend()
            stopped.append(victim)
        time.sleep(2)
        for number, (attempt, victim) in enumerate(zip(attempts, stopped, strict=True)):
            if number % 2:
                victim.resume()
                attempt.victims("a rank")[0].terminate()
        for number, (run, attempt, victim) in enumerate(zip(runs, attempts, stopped, strict=True)):
            started = time.monotonic()
            while any(process.pid != victim.pid for process in attempt.alive()) and time.monotonic() - started < 60:
                time.sleep(0.1)
            counts["stopped"] += 1
            others = [process for process in attempt.alive() if process.pid != victim.pid]
            counts["PROCESSES LEFT"] += len(others)
            # as a launcher does after its grace period
            for process in attempt.alive():
                counts["PROCESSES LEFT"] += number % 2
                process.kill()
            attempt.wait(10)
            explained = attempt.has_logged("no progress for 8 s") or attempt.has_logged(": stopping after step ")
            counts["NO REASON LOGGED"] += not explained
            run.check(counts)
            run.complete = set(run.store.steps())
            run.finish(counts)
    return counts


#: the moment at which each disk fault is caused
DISK_FAULTS = {
    "full before the start": "start",
    "full at a step": "step",
    "full at a save": "save",
    "full at an evaluation": "evaluation",
    "full at a snapshot": "snapshot",
    "full at the end": "end",
    "full, with TensorBoard": "step",
    "read-only before a resume": "start",
    "read-only at a step": "step",
    "read-only logs": "step",
}


def fail_disks(directory: Path) -> Counter[str]:
    """Cause each fault of `DISK_FAULTS` in a run, make the disk writable again, and resume. Returns event counts."""
    counts = Counter[str]()
    for case, moment in DISK_FAULTS.items():
        case_directory = directory / case.replace(" ", "-").replace(",", "")
        disk = case_directory / "disk"
        disk.mkdir(parents=True)
        mount("-t", "tmpfs", "-o", "size=40m", "tmpfs", disk)
        run = Run(case_directory, 1, disk)
        run.max_steps = 30
        read_only = disk / "disturbed" / ("logs" if "logs" in case else "")
        if case == "read-only before a resume":
            run.start("warm").wait(120)
            run.max_steps = 40
        if moment == "start":
            cause_disk_fault(case, disk, read_only)
        attempt = run.start("warm", *(["monitoring.tensorboard=true"] if "TensorBoard" in case else []))
        if moment != "start":
            while not MOMENTS[moment](attempt) and attempt.alive():
                time.sleep(0.005)
            cause_disk_fault(case, disk, read_only)
        seconds = attempt.wait(120)
        status = RunStatus.read(RunDirectory(disk / "disturbed"))
        errors = [line for line in attempt.log.read_text(errors="replace").splitlines() if "error: " in line]
        explained = not errors or "No space left" in errors[-1] or "Read-only" in errors[-1]
        counts["disks"] += 1
        counts["NO REASON LOGGED"] += not explained
        counts["PROCESSES LEFT"] += len(attempt.alive())
        print(f"{case}: ended after {seconds:.0f} s, status {status and status.state}, {errors[-1:]}", flush=True)
        if case.startswith("read-only"):
            subprocess.run(["umount", "--lazy", read_only], check=True)
        mount("-o", "remount,size=200m", disk)
        (disk / "filler").unlink(missing_ok=True)
        run.check(counts)
        run.finish(counts)
        subprocess.run(["umount", "--lazy", disk], check=True)
    return counts


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def cause_disk_fault(case: str, disk: Path, read_only: Path) -> None:
    """Fill `disk`, or mount `read_only` over itself read-only. Files that are already open remain writable."""
    if case.startswith("full"):
        fill(disk)
    else:
        mount("--bind", read_only, read_only)
        mount("-o", "remount,bind,ro", read_only)


def fill(disk: Path) -> None:
    """Write to `disk` until no space is left."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--real-share", type=float, default=0.3, help="share of kills under torchrun or deepspeed")
    parser.add_argument("--stops", type=int, default=0, help="number of ranks to stop")
    parser.add_argument("--disks", action="store_true", help="fill disks and make them read-only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where the runs are kept; default: a temporary directory")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="fault-campaign-"))
    print(f"runs and logs are in {directory}", flush=True)
    parts = {
        "kills": lambda: kill(arguments.kills, directory / "kills", arguments.real_share),
        "stops": lambda: stop(arguments.stops, directory / "stops"),
        "disks": lambda: fail_disks(directory / "disks"),
    }
    for name, part in parts.items():
        if getattr(arguments, name):
            for event, count in part().items():
                print(f"{count:>6}  {event}", flush=True)


if __name__ == "__main__":
    main()
