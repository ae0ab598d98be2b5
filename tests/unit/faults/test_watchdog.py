"""The watchdog ends a process that hangs, in Python or native code, and no other process."""

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


def test_rank_that_waits_for_a_dead_rank_is_ended(tmp_path: Path) -> None:
    """After a rank dies, an NCCL collective waits forever and does not react to signals."""
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
    result = run_code(textwrap.dedent(code), tmp_path)
    assert result.returncode == HANG_EXIT_CODE
    assert "rank 3: rank 1 of this node has died, and this rank waits for it" in result.stderr


def test_rank_with_progress_is_not_ended_when_another_rank_dies(tmp_path: Path) -> None:
    code = """
        import pico_ds.faults.watchdog
        dog.stop()
        pico_ds.faults.watchdog._LOST_SECONDS = 0.5
        with Watchdog(60.0, 3, dog._path.parent, lambda: [1]) as dog:
            for _ in range(20): time.sleep(0.1); dog.beat()
    """
    assert run_code(textwrap.dedent(code), tmp_path).returncode == 0


def test_rank_with_progress_is_not_ended(tmp_path: Path) -> None:
    result = run_code("for _ in range(8): time.sleep(0.3); dog.beat()\ndog.stop()\ntime.sleep(2)", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_stop_tolerates_a_missing_stack_file(tmp_path: Path) -> None:
    """Removing the empty stack file at the end of a run may fail, for example on a read-only disk."""
    assert run_code("dog._path.unlink()\ndog.stop()", tmp_path).returncode == 0


def test_hanging_rank_is_ended_and_its_stack_is_written(tmp_path: Path) -> None:
    result = run_code("def stuck_here(): time.sleep(60)\nstuck_here()", tmp_path)
    assert result.returncode == HANG_EXIT_CODE
    assert "rank 3: no progress for 1 s (training.hang_timeout_seconds)" in result.stderr
    assert "in stuck_here" in result.stderr
    assert "in stuck_here" in (tmp_path / "stacks_rank_3.txt").read_text()


def test_hang_with_the_interpreter_lock_is_ended(tmp_path: Path) -> None:
    result = run_code("def stuck_here(): ctypes.PyDLL(None).sleep(60)\nstuck_here()", tmp_path)
    assert result.returncode == 1
    assert "in stuck_here" in (tmp_path / "stacks_rank_3.txt").read_text()


@pytest.mark.parametrize("end", ["dog.stop()", "pass"])
def test_watchdog_does_not_delay_the_exit_of_the_process(tmp_path: Path, end: str) -> None:
    assert run_code(end, tmp_path).returncode == 0
