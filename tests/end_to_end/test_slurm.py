"""scripts/slurm/train.sbatch with a simulated SLURM: `srun` and `scontrol` on PATH record their arguments."""

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from tests.conftest import write_text_corpus
from tests.launching import BIN, REPOSITORY
from tests.run_results import TINY, metrics_of

SCRIPT = REPOSITORY / "scripts" / "slurm" / "train.sbatch"
#: replaces itself by the command, so that signals reach the command, as with SLURM's srun
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$NOTES"
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$NOTES"
if [[ "$1" == show ]]; then printf '127.0.0.1\\nnode02\\n'; fi
if [[ "$1" == requeue ]]; then exit "${REQUEUE_CODE:-0}"; fi
"""
#: replaces torchrun: exits with $CODE at once or, if $LONG is set, with 1 after a signal
TORCHRUN = """#!/usr/bin/env bash
echo "torchrun $*" >> "$NOTES"
env | grep ^TORCH_ >> "$NOTES"
for name in USR1 TERM; do trap "echo got $name >> $NOTES; sleep 0.3; exit 1" $name; done
if [[ -n "${LONG:-}" ]]; then echo running >> "$NOTES"; while :; do sleep 0.05; done; fi
if [[ "$*" == *preflight.py* ]]; then exit "${PREFLIGHT_CODE:-0}"; fi
exit "${CODE:-0}"
"""


class Slurm:
    """A simulated SLURM job, and the recorded calls."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.notes = directory, directory / "notes"
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.add_command("srun", SRUN)
        self.add_command("scontrol", SCONTROL)
        self.job: subprocess.Popen[str] | None = None

    def add_command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCH_"))},
            "PATH": f"{self.bin}:{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "NOTES": str(self.notes),
            "SLURM_JOB_ID": "20123",
            "SLURM_JOB_NODELIST": "node[01-02]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            **variables,
        }
        out = (self.directory / "slurm.out").open("a")
        self.job = subprocess.Popen(
            [str(SCRIPT), *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=out,
            stderr=out,
            text=True,
            start_new_session=True,
        )
        return self.job

    def run(self, *arguments: str, **variables: str) -> int:
        return self.start(*arguments, **variables).wait(timeout=100)

    def wait_for(self, path: Path, text: str) -> None:
        end = time.monotonic() + 100
        while not (path.exists() and text in path.read_text()):
            assert time.monotonic() < end, self.output
            time.sleep(0.05)

    @property
    def output(self) -> str:
        return (self.directory / "slurm.out").read_text()

    @property
    def requeued(self) -> bool:
        return "scontrol requeue 20123\n" in self.notes.read_text()


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    simulated = Slurm(tmp_path)
    yield simulated
    if simulated.job is not None and simulated.job.poll() is None:
        os.killpg(simulated.job.pid, signal.SIGKILL)


@pytest.fixture
def stub(slurm: Slurm) -> Slurm:
    """A job without a real torchrun."""
    slurm.add_command("torchrun", TORCHRUN)
    return slurm


def test_torchrun_gets_the_first_node_and_all_arguments(stub: Slurm) -> None:
    assert stub.run("--config", "a b.yaml", "training.seed=1") == 0
    launched = next(line for line in stub.notes.read_text().splitlines() if line.startswith("torchrun"))
    assert launched == (
        "torchrun --nnodes 2:2 --nproc_per_node 8 "
        "--rdzv_backend c10d --rdzv_endpoint 127.0.0.1:10123 --rdzv_id 20123-0 --max-restarts 3 "
        "--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 scripts/train.py --config a b.yaml "
        "training.seed=1"
    )
    notes = stub.notes.read_text()
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in notes
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300" in notes
    assert "scontrol show hostnames node[01-02]" in notes
    assert not stub.requeued


def test_environment_variables_set_the_torchrun_options(stub: Slurm) -> None:
    assert stub.run(MIN_NODES="1", RANKS_PER_NODE="4", MAX_RESTARTS="9", SLURM_RESTART_COUNT="2") == 0
    for part in ("--nnodes 1:2", "--nproc_per_node 4", "--max-restarts 9", "--rdzv_id 20123-2"):
        assert part in stub.notes.read_text()


def test_failed_job_keeps_its_exit_code_and_is_not_requeued(stub: Slurm) -> None:
    assert stub.run(CODE="7") == 7
    assert not stub.requeued


@pytest.mark.parametrize(
    ("number", "requeue_code", "code", "requeued"),
    [(signal.SIGUSR1, "0", 0, True), (signal.SIGUSR1, "1", 1, True), (signal.SIGTERM, "0", 1, False)],
)
def test_signal_is_forwarded_and_the_job_waits_for_training_to_end(
    stub: Slurm, number: signal.Signals, requeue_code: str, code: int, requeued: bool
) -> None:
    job = stub.start(LONG="1", REQUEUE_CODE=requeue_code)
    stub.wait_for(stub.notes, "running")
    job.send_signal(number)
    assert job.wait(timeout=20) == code
    assert f"got {number.name.removeprefix('SIG')}" in stub.notes.read_text()
    assert stub.requeued == requeued
    assert ("SLURM cannot requeue job 20123" in stub.output) == (requeue_code == "1")


def test_failed_preflight_prevents_training(stub: Slurm) -> None:
    assert stub.run("training.seed=1", PREFLIGHT="1", PREFLIGHT_CODE="1") == 1
    assert "scripts/preflight.py training.seed=1" in stub.notes.read_text()
    assert "scripts/train.py" not in stub.notes.read_text()
    assert stub.run("training.seed=1", PREFLIGHT="1") == 0
    assert "scripts/train.py training.seed=1" in stub.notes.read_text()


def test_signal_during_preflight_requeues_the_job(stub: Slurm) -> None:
    job = stub.start(PREFLIGHT="1", LONG="1")
    stub.wait_for(stub.notes, "running")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=20) == 0
    assert stub.requeued
    assert "scripts/train.py" not in stub.notes.read_text()


def test_start_outside_of_slurm_is_an_error(stub: Slurm) -> None:
    assert stub.run(SLURM_JOB_NODELIST="") == 2
    assert "SLURM_JOB_NODELIST is not set; run: sbatch" in stub.output


def test_job_near_its_time_limit_saves_requeues_and_resumes(slurm: Slurm) -> None:
    """torchrun is real here, and two ranks train."""
    corpus = write_text_corpus(slurm.directory / "corpus.jsonl")
    # without run_name, because the requeued job must find its run
    paths = ["--config", TINY, f"data.paths=[{corpus}]", f"checkpointing.runs_dir={slurm.directory}/runs"]
    settings = [*paths, "training.lr_schedule=constant", "checkpointing.save_every_n_steps=50000"]
    metrics = slurm.directory / "runs" / "tiny-001" / "logs" / "metrics.jsonl"
    variables = {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    job = slurm.start(*settings, "training.max_steps=150", **variables)
    slurm.wait_for(metrics, '"step": 5,')
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0, slurm.output
    assert slurm.requeued
    assert "SIGUSR1: stopping after step" in slurm.output
    saved = metrics_of(slurm.directory / "runs" / "tiny-001")[-1]["step"]
    assert saved < 150
    assert slurm.run(*settings, "training.max_steps=150", SLURM_RESTART_COUNT="1", **variables) == 0, slurm.output
    assert f"resuming from {slurm.directory}/runs/tiny-001/checkpoints/step_{saved}" in slurm.output
    steps = [line["step"] for line in metrics_of(slurm.directory / "runs" / "tiny-001") if "lr" in line]
    assert steps == list(range(1, 151))


def test_deepspeed_reads_the_hostfile() -> None:
    hosts: Callable[[str], dict[str, int]] = fetch_hostfile
    assert dict(hosts(str(REPOSITORY / "scripts" / "slurm" / "hostfile"))) == {f"node0{n}": 8 for n in range(1, 5)}
