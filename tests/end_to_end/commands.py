"""Run scripts/train.py as a user would, by any launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.launching import REPOSITORY, free_port

TINY = "tests/end_to_end/tiny.yaml"
BIN = Path(sys.executable).parent


def environment(**others: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **others}


def run(*command: str, timeout_seconds: float = 200, check: bool = True, **others: str) -> str:
    """Run a command from the repository's root; returns what it printed."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(**others),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # ranks share the pipe: their writes may cut each other's characters in two
        errors="replace",
        timeout=timeout_seconds,
    )
    if check:
        assert done.returncode == 0, f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout[-5000:]}"
    else:
        assert done.returncode != 0, f"{' '.join(command)} should have failed:\n{done.stdout[-5000:]}"
    return done.stdout


def torchrun(*arguments: str, ranks: int = 2, **others: Any) -> str:
    return run("torchrun", "--nproc_per_node", str(ranks), "--master_port", str(free_port()), *arguments, **others)


def deepspeed(*arguments: str, ranks: int = 2, **others: Any) -> str:
    return run("deepspeed", "--num_accelerators", str(ranks), "--master_port", str(free_port()), *arguments, **others)


def start(*command: str, **others: str) -> "subprocess.Popen[str]":
    """Start a command from the repository's root; its output is read by the caller."""
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(**others),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def two_agents(arguments: list[str], *options: str, timeout_seconds: float = 200, **others: str) -> str:
    """Run `torchrun` as two nodes of one rank each, over loopback; returns what both printed."""
    rendezvous = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "agents", *options]
    rendezvous += ["--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--local_addr", "127.0.0.1"]
    agents = [start("torchrun", *rendezvous, "--node_rank", str(node), *arguments, **others) for node in range(2)]
    try:
        logs = [agent.communicate(timeout=timeout_seconds)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(log[-5000:] for log in logs)
    return "\n".join(logs)


#: metrics of the machine, not of the mathematics
TIMINGS = {"seconds_per_step", "tokens_per_second", "tasks_per_second", "peak_memory_gib", "data_wait_fraction"}


def course_of(run_directory: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl without what the clock decides."""
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in metrics_of(run_directory)]


def metrics_of(run_directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_directory / "logs" / "metrics.jsonl").read_text().splitlines()]
