"""Stop signals, and the launcher processes whose death stops a rank."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pico_ds.faults.launcher_processes import _length, is_launcher

PYTHON = "/usr/bin/python3"
RUNNER = ("python3", [PYTHON, "/usr/bin/deepspeed", "--num_gpus", "8", "scripts/train.py"])
LAUNCH = ("python3", [PYTHON, "-u", "-m", "deepspeed.launcher.launch", "--world_info=e30="])
TORCHRUN = ("torchrun", [PYTHON, "/usr/bin/torchrun", "--nproc_per_node", "8"])
SHELL = ("bash", ["-bash"])
REMOTE_SHELL = ("bash", ["bash", "-c", "cd /work; torchrun ..."])
SSHD = ("sshd", ["sshd: user@notty"])
STEP = ("slurmstepd", ["slurmstepd: [12.0]"])
TERMINAL = ("tmux: server", ["tmux"])


@pytest.mark.parametrize(
    ("ancestors", "length"),
    [
        ([LAUNCH, RUNNER, SHELL, SSHD], 2),  # an interactive session, whose command may outlive the connection
        ([LAUNCH, REMOTE_SHELL, SSHD, SSHD], 3),  # the deepspeed launcher, on another node
        ([TORCHRUN, SSHD], 2),
        ([TORCHRUN, SHELL, TERMINAL], 1),
        ([TORCHRUN, STEP], 2),
        ([TORCHRUN, ("bash", ["/bin/bash", "train.sbatch"]), STEP], 3),
        ([SHELL, SSHD], 0),
        ([("sh", ["sh", "torchrun"]), SSHD], 0),
    ],
)
def test_chain_ends_with_the_topmost_launcher(ancestors: list[tuple[str, list[str]]], length: int) -> None:
    assert _length(ancestors, is_rank=False) == length


def test_parent_of_a_rank_is_a_launcher_if_there_are_other_ranks() -> None:
    assert _length([("my-launcher", ["my-launcher"]), SHELL], is_rank=True) == 1
    assert not is_launcher(["my-launcher"], "my-launcher")


def test_chain_excludes_the_connection_if_sighup_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    assert _length([TORCHRUN, SSHD], is_rank=True) == 1


#: a rank that prints the signal it records, and the parent and grandparent processes, whose file names are launchers
RANK = """
import sys, time
from pico_ds.faults.stop_signals import StopSignals
signals = StopSignals()
if sys.argv[1] == "training":
    signals.install()
print("up", flush=True)
for _ in range(200):
    if signals.received:
        print(signals.received, flush=True)
        break
    time.sleep(0.05)
"""
PARENT = """
import os, subprocess, sys
print(os.getpid(), flush=True)
subprocess.run([sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("deepspeed", "torchrun", "rank.py")}
    for name, path in paths.items():
        path.write_text(RANK if name == "rank.py" else PARENT)
    return paths


@pytest.fixture
def launched(programs: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a rank below two launchers. Return the process of the upper launcher and the id of the lower one."""
    command = [sys.executable, *map(str, programs.values()), request.param]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parents[3]
    )
    assert process.stdout is not None
    lower = [int(process.stdout.readline()) for _ in range(2)][1]
    assert process.stdout.readline() == "up\n"
    yield process, lower
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("launched", ["training"], indirect=True)
@pytest.mark.parametrize("place", ["grandparent", "parent"])
def test_rank_notices_the_death_of_any_launcher(launched: tuple[subprocess.Popen[str], int], place: str) -> None:
    process, lower = launched
    os.kill(process.pid if place == "grandparent" else lower, signal.SIGKILL)
    assert process.stdout is not None
    assert process.stdout.read() == "the launcher has died\n"


@pytest.mark.parametrize("launched", ["starting"], indirect=True)
def test_rank_that_is_still_starting_dies_with_its_launcher(
    launched: tuple[subprocess.Popen[str], int],
) -> None:
    process, _ = launched
    process.kill()
    assert process.stdout is not None
    started = time.monotonic()
    output = process.stdout.read()
    assert time.monotonic() - started < 5
    assert output == "the launcher has died: exiting before the first step\n"


def test_sighup_stops_a_run_unless_it_is_ignored() -> None:
    code = "from pico_ds.faults.stop_signals import StopSignals as S; s = S(); s.install(); "
    code += "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print(s.received)"
    for prefix, expected in (([], "SIGHUP"), (["nohup"], "None")):
        result = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == expected


def test_second_interrupt_stops_at_once() -> None:
    code = "from pico_ds.faults.stop_signals import StopSignals as S; s = S(); s.install(); import os, time; "
    code += "me = os.getpid(); os.kill(me, 2); os.kill(me, 2); print(s.received, flush=True); time.sleep(1.1); "
    code += "os.kill(me, 2); print('went on')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "SIGINT\n"
    assert "press Ctrl-C again to stop at once" in result.stderr
    assert result.stderr.endswith("KeyboardInterrupt\n")
