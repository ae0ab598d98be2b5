"""The watchdog ends a process that hangs, wherever it hangs, and no other."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pico_ds.faults.watchdog import HANG_EXIT_CODE
from tests.launching import REPOSITORY


def run_code(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    start = f"""
        import ctypes, time
        from pathlib import Path
        from pico_ds.faults.watchdog import Watchdog
        dog = Watchdog(1.0, 3, Path({str(directory)!r}))
        dog.start()
    """
    program = textwrap.dedent(start) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_a_rank_that_waits_for_a_dead_one_is_ended(tmp_path: Path) -> None:
    """A collective of NCCL waits on when a rank has died, and no signal gets through to it."""
    code = """
        import signal
        import pico_ds.faults.watchdog
        dog.stop()
        pico_ds.faults.watchdog._LOST_SECONDS = 1.0
        dog = Watchdog(60.0, 3, dog._path.parent, lambda: [1])
        dog.start()
        signal.signal(signal.SIGTERM, lambda *_: None)
        ctypes.CDLL(None).sleep(60)
    """
    done = run_code(textwrap.dedent(code), tmp_path)
    assert done.returncode == HANG_EXIT_CODE
    assert "rank 3: rank 1 of this node has died, and this one waits for it" in done.stderr


def test_a_rank_that_goes_on_is_not_ended_for_a_dead_one(tmp_path: Path) -> None:
    code = """
        import pico_ds.faults.watchdog
        dog.stop()
        pico_ds.faults.watchdog._LOST_SECONDS = 0.5
        with Watchdog(60.0, 3, dog._path.parent, lambda: [1]) as dog:
            for _ in range(20): time.sleep(0.1); dog.beat()
    """
    assert run_code(textwrap.dedent(code), tmp_path).returncode == 0


def test_progress_keeps_it_quiet(tmp_path: Path) -> None:
    done = run_code("for _ in range(8): time.sleep(0.3); dog.beat()\ndog.stop()\ntime.sleep(2)", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_logs_that_are_gone_are_no_failure(tmp_path: Path) -> None:
    """The file of stacks is empty at the end of a sound run, and removing it may fail: a disk became read-only."""
    assert run_code("dog._path.unlink()\ndog.stop()", tmp_path).returncode == 0


def test_a_hang_is_ended_with_its_stack(tmp_path: Path) -> None:
    done = run_code("def stuck_here(): time.sleep(60)\nstuck_here()", tmp_path)
    assert done.returncode == HANG_EXIT_CODE
    assert "rank 3: no progress for 1 s (training.hang_timeout_seconds)" in done.stderr
    assert "in stuck_here" in done.stderr
    assert "in stuck_here" in (tmp_path / "stacks_rank_3.txt").read_text()


def test_a_hang_that_holds_the_interpreter_lock_is_ended_too(tmp_path: Path) -> None:
    done = run_code("def stuck_here(): ctypes.PyDLL(None).sleep(60)\nstuck_here()", tmp_path)
    assert done.returncode == 1
    assert "in stuck_here" in (tmp_path / "stacks_rank_3.txt").read_text()


@pytest.mark.parametrize("end", ["dog.stop()", "pass"])
def test_a_process_ends_at_once(tmp_path: Path, end: str) -> None:
    assert run_code(end, tmp_path).returncode == 0
