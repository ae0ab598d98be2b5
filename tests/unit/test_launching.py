"""The warm launcher: a forked command behaves like a new process."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.launching import REPOSITORY, Process, environment, real, warm


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def write(script: Path, code: str) -> str:
    script.write_text(textwrap.dedent(code))
    return str(script)


def test_command_gets_its_arguments_environment_and_directory(script: Path, tmp_path: Path) -> None:
    code = """
        import os, sys
        print(sys.argv[1:], os.environ["MINE"], os.getcwd(), sys.path[0], __name__, sys.stdin.read() == "")
        print("PICO_DS_CACHE" in os.environ)
    """
    expected = f"['a', '--b=c d'] yes {tmp_path} {tmp_path} __main__ True\nFalse\n"
    for launcher in (warm, real):
        arguments = (write(script, code), "a", "--b=c d")
        assert launcher.python(*arguments, directory=tmp_path, MINE="yes", PICO_DS_CACHE=None) == expected


@pytest.mark.parametrize(
    ("code", "exit_code", "last_line"),
    [
        ("print('done')", 0, "done"),
        ("import sys; print('done'); sys.exit(7)", 7, "done"),
        ("import sys; sys.exit('what went wrong')", 1, "what went wrong"),
        ("raise ValueError('a bug')", 1, "ValueError: a bug"),
        ("import atexit; atexit.register(print, 'the end')", 0, "the end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
    ],
)
def test_exit_codes_and_output_match_python(script: Path, code: str, exit_code: int, last_line: str) -> None:
    process = warm.start(write(script, code))
    output, _ = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert output.strip().split("\n")[-1] == last_line


def test_module_runs_by_name(tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text("import sys; print(__name__, sys.argv[1:])")
    assert warm.python("-m", "named", "x", directory=tmp_path) == "__main__ ['x']\n"


def test_libraries_are_preloaded_without_initialising_cuda(script: Path) -> None:
    code = """
        import sys
        assert {"torch", "deepspeed", "transformers", "datasets", "pico_ds.training.run_training"} <= sys.modules.keys()
        import torch
        assert not torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork()
        if torch.cuda.is_available():
            torch.zeros(1, device="cuda")
        assert not any("jaxtyping" in type(finder).__module__ for finder in sys.meta_path), "the hook of the tests"
    """
    warm.python(write(script, code))


def test_forked_processes_have_different_random_numbers(script: Path) -> None:
    code = "import random, numpy, uuid; print(random.random(), numpy.random.rand(), uuid.uuid4())"
    numbers = [warm.python(write(script, code)).split() for _ in range(2)]
    assert all(first != second for first, second in zip(*numbers, strict=True))


def test_ranks_get_the_environment_of_torchrun(script: Path) -> None:
    code = """
        import os
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        print(" ".join(os.environ[name] for name in names) + "\\n", end="")
    """
    for launcher in (warm, real):
        found = launcher.torchrun(write(script, code)).splitlines()
        assert {"0 0 2 2 127.0.0.1", "1 1 2 2 127.0.0.1"} <= set(found)


def test_failed_rank_ends_the_other_ranks(script: Path) -> None:
    code = """
        import os, sys, time
        if os.environ["RANK"] == "1":
            sys.exit(5)
        time.sleep(60)
    """
    started = time.monotonic()
    process = warm.start_ranks(2, write(script, code))
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert time.monotonic() - started < 20


SLEEP = "import time; print('ready', flush=True); time.sleep(60)"


def descendants_of(process: Process, ready: int = 1) -> list[psutil.Process]:
    """Return the descendants of a process after `ready` programs have reported that they are ready."""
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(ready)] == ["ready\n"] * ready
    return psutil.Process(process.pid).children(recursive=True)


def test_signal_reaches_the_process_and_kill_reaches_its_ranks(script: Path) -> None:
    process = warm.start(write(script, SLEEP))
    descendants_of(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM

    process = warm.start_ranks(2, write(script, SLEEP))
    ranks = descendants_of(process, ready=2)
    assert len(ranks) == 2
    process.kill()
    assert process.wait(timeout=20) == -signal.SIGKILL
    assert not psutil.wait_procs(ranks, timeout=20)[1]


def test_command_is_killed_after_its_timeout(script: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        warm.python(write(script, SLEEP), timeout_seconds=0.5)


@pytest.mark.slow  # starts another server, which takes 6 s of CPU time
def test_no_process_remains_after_pytest_is_killed(script: Path) -> None:
    code = f"""
        from tests.launching import warm
        process = warm.start({write(script, SLEEP)!r})
        print(process.stdout.readline(), process.pid, flush=True)
        process.wait()
    """
    tests = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tests.stdout is not None
    assert tests.stdout.readline() == "ready\n"
    command = psutil.Process(int(tests.stdout.readline()))
    server = command.parent()
    assert server is not None
    assert server.ppid() == tests.pid != os.getpid()
    tests.kill()
    tests.communicate()
    assert not psutil.wait_procs([command, server], timeout=20)[1]
