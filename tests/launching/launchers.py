"""Launchers for commands, and single-machine ranks and nodes."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tests.launching.fork_client import REPOSITORY, ForkedProcess, Program

BIN = Path(sys.executable).parent
#: a started or forked process
Process = subprocess.Popen[str] | ForkedProcess


def free_port() -> int:
    """A free port below 16000, because launches on ports of the ephemeral range sometimes die without a message."""
    for _ in range(100):
        port = random.randint(10_000, 16_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port below 16000")


def environment(**others: str | None) -> dict[str, str]:
    """The environment of a command with one thread. Variables whose value is None are removed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', '')}"
    modules = os.pathsep.join(filter(None, (str(REPOSITORY), kept.get("PYTHONPATH"))))
    variables = {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": modules, **others}
    return {name: value for name, value in variables.items() if value is not None}


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Launcher(ABC):
    """Starts a script, or `-m` and a module, in the root of the repository.

    Keyword arguments in capitals are environment variables.
    """

    @abstractmethod
    def start(
        self, *arguments: str, directory: Path = REPOSITORY, log: Path | None = None, **variables: str | None
    ) -> Process:
        """Start `python *arguments`. The caller waits for the end, and reads the output unless it goes to `log`."""

    @abstractmethod
    def start_ranks(self, ranks: int, *arguments: str, **variables: str | None) -> Process:
        """Start ranks of `python *arguments` below a launcher, which ends all ranks if one fails."""

    def python(
        self,
        *arguments: str,
        check: bool = True,
        timeout_seconds: float = 200,
        directory: Path = REPOSITORY,
        **variables: str | None,
    ) -> str:
        """Run `python *arguments` and return the output."""
        return output_of(self.start(*arguments, directory=directory, **variables), check, timeout_seconds)

    def torchrun(
        self, *arguments: str, ranks: int = 2, check: bool = True, timeout_seconds: float = 200, **variables: str | None
    ) -> str:
        """Run ranks of `python *arguments` and return the output of all ranks."""
        return output_of(self.start_ranks(ranks, *arguments, **variables), check, timeout_seconds)


class Warm(Launcher):
    """Forks commands from a process that has already imported everything. A short run takes about 1 s of CPU time."""

    def start(
        self, *arguments: str, directory: Path = REPOSITORY, log: Path | None = None, **variables: str | None
    ) -> ForkedProcess:
        return ForkedProcess([Program(arguments, environment(**variables), str(directory))], log)

    def start_ranks(self, ranks: int, *arguments: str, **variables: str | None) -> ForkedProcess:
        port = free_port()
        return ForkedProcess(
            [Program(arguments, environment(**variables, **rank_variables(rank, ranks, port))) for rank in range(ranks)]
        )


class Real(Launcher):
    """Starts commands as a user does. Every process needs about 5 s of CPU time for imports."""

    def start(
        self, *arguments: str, directory: Path = REPOSITORY, log: Path | None = None, **variables: str | None
    ) -> subprocess.Popen[str]:
        return self.start_command("python", *arguments, directory=directory, log=log, **variables)

    def start_ranks(
        self, ranks: int, *arguments: str, options: Sequence[str] = (), **variables: str | None
    ) -> subprocess.Popen[str]:
        """Start ranks by torchrun, with more options for torchrun."""
        all_options = ("--nproc_per_node", str(ranks), "--master_port", str(free_port()), *options)
        return self.start_command("torchrun", *all_options, *arguments, **variables)

    def start_command(
        self, *command: str, directory: Path = REPOSITORY, log: Path | None = None, **variables: str | None
    ) -> subprocess.Popen[str]:
        """Start any command."""
        with log.open("ab") if log is not None else nullcontext(subprocess.PIPE) as output:
            return subprocess.Popen(
                command,
                cwd=directory,
                env=environment(**variables),
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                # ranks share the pipe, and concurrent writes may split a character
                errors="replace",
            )

    def run(self, *command: str, check: bool = True, timeout_seconds: float = 200, **variables: str | None) -> str:
        """Run any command and return the output."""
        return output_of(self.start_command(*command, **variables), check, timeout_seconds)

    def deepspeed(self, *arguments: str, ranks: int = 2, **options: Any) -> str:
        """Run ranks of `python *arguments` by the deepspeed launcher and return the output of all ranks."""
        return self.run(
            "deepspeed", "--num_accelerators", str(ranks), "--master_port", str(free_port()), *arguments, **options
        )


warm, real = Warm(), Real()


def output_of(process: Process, check: bool, timeout_seconds: float) -> str:
    """Wait for a process and return its output. The process must succeed if `check` is true, and fail otherwise."""
    try:
        output = process.communicate(timeout=timeout_seconds)[0]
    finally:
        process.kill()
    report = f"{process.args} exited with {process.returncode}:\n{output[-5000:]}"
    assert (process.returncode == 0) == check, report if check else f"should have failed: {report}"
    return output


def run_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 240
) -> list[Any]:
    """Call `function(process, *arguments)` on gloo ranks of this machine. Returns the results by rank.

    Args:
        function: function of an importable module. Arguments and results are passed as JSON.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        call = [directory, function.__module__, function.__name__, json.dumps(arguments)]
        ranks = [
            Program(["-m", "tests.launching.rank", *call], environment(**rank_variables(rank, world_size, port)))
            for rank in range(world_size)
        ]
        output_of(ForkedProcess(ranks), check=True, timeout_seconds=timeout_seconds)
        return [json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in range(world_size)]


def two_agents(
    arguments: list[str], *options: str, timeout_seconds: float = 200, variables: Mapping[str, str] | None = None
) -> str:
    """Run `torchrun` as two nodes of one rank each over loopback. Returns the output of both."""
    rendezvous = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "agents", *options]
    rendezvous += ["--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--local_addr", "127.0.0.1"]
    agents = [
        real.start_command("torchrun", *rendezvous, "--node_rank", str(node), *arguments, **(variables or {}))
        for node in range(2)
    ]
    try:
        logs = [agent.communicate(timeout=timeout_seconds)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(log[-5000:] for log in logs)
    return "\n".join(logs)
