"""Runs commands through a fork server, with the interface of `subprocess.Popen`."""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parents[2]
#: time for a new server to import everything [s]
_START_SECONDS = 120.0
#: prefixes of variables that are read once, at the start or import; commands with other values get another server
_READ_AT_START = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DS_ACCELERATOR", "OMP_NUM_THREADS", "PYTHON")
#: prevents that imports start a thread (pyarrow's jemalloc) or initialise CUDA; the last is also set by the scripts
_SERVER_ONLY = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "THP_MEM_ALLOC_ENABLE": "1",
}


@dataclass(frozen=True)
class Program:
    """The program of one process.

    Attributes:
        arguments: a script and its arguments, or "-m", a module and its arguments.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: str = str(REPOSITORY)


class ForkedProcess:
    """A command that a fork server runs. Has the part of the interface of `subprocess.Popen[str]` that tests use."""

    def __init__(self, programs: Sequence[Program], log: Path | None = None) -> None:
        """Start one program in a process, or several as ranks below a process that acts as the launcher.

        Args:
            log: file to which the output is appended. By default, `stdout` provides the output.
        """
        replies, reply_end = os.pipe()
        if log is None:
            reading, output = os.pipe()
            self.stdout: IO[str] = os.fdopen(reading, encoding="utf-8", errors="replace")
        else:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with Path(os.devnull).open("rb") as stdin:
            server = _server_for(programs[0].environment)
            server.start(programs, (stdin.fileno(), output, reply_end))
        os.close(output)
        os.close(reply_end)
        self._replies = replies
        self._replied = b""
        self.returncode: int | None = None
        self.args = [*programs[0].arguments]
        self.pid = int(self._read_line(_START_SECONDS))

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and all processes that it started."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = int(self._read_line(timeout))
            os.close(self._replies)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Read the remaining output, and wait for the end.

        Raises:
            subprocess.TimeoutExpired: the process, or another process with the same output, still runs.
        """
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.stdout.close()
        self.wait(timeout)
        return output[0], None

    def _read_line(self, timeout: float | None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._replied:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._replies], [], [], remaining)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            chunk = os.read(self._replies, 64)
            if not chunk:
                raise RuntimeError(f"the fork server died while it ran {self.args}")
            self._replied += chunk
        line, _, self._replied = self._replied.partition(b"\n")
        return line


class _Server:
    """A fork server and its socket. The server ends with this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        own_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = own_end
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "tests.launching.fork_server", str(server_end.fileno())]
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**environment, **_SERVER_ONLY},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[server_end.fileno()],
            start_new_session=True,
        )
        server_end.close()
        atexit.register(self.stop)
        own_end.settimeout(_START_SECONDS)
        if own_end.recv(16) != b"ready":
            self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"the fork server could not start:\n{self._log.read()[-4000:]}")

    def start(self, programs: Sequence[Program], descriptors: tuple[int, int, int]) -> None:
        message = json.dumps({"programs": [asdict(program) for program in programs]}).encode()
        socket.send_fds(self._control, [message], descriptors)

    def stop(self) -> None:
        self._control.close()
        self._process.wait(timeout=60)


def _server_for(environment: Mapping[str, str]) -> _Server:
    names = (name for name in environment if name.startswith(_READ_AT_START) and name != "HF_TOKEN")
    return _server(frozenset((name, environment[name]) for name in names))


@cache
def _server(read_at_start: frozenset[tuple[str, str]]) -> _Server:
    others = {name: value for name, value in os.environ.items() if not name.startswith(_READ_AT_START)}
    return _Server({**others, **dict(read_at_start)})
