"""Start several gloo ranks on this machine and collect what each one wrote."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port below 16000: launches on ports of the ephemeral range now and then die without a message."""
    for _ in range(100):
        port = random.randint(10_000, 16_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port below 16000")


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that torchrun would set."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }


def run_ranks(
    module: str, world_size: int, directory: Path, *arguments: str, timeout_seconds: float = 240
) -> list[Any]:
    """Run `python -m module OUT *arguments` as `world_size` ranks; returns the JSON that each rank wrote to OUT."""
    port = free_port()
    outputs = [directory / f"rank_{rank}.json" for rank in range(world_size)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(output), *arguments],
            env=rank_environment(rank, world_size, port),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        logs = [rank.communicate(timeout=timeout_seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [
        f"rank {number} of {module} exited with {rank.returncode}:\n{log[-4000:]}"
        for number, (rank, log) in enumerate(zip(ranks, logs, strict=True))
        if rank.returncode != 0
    ]
    # a rank that only lost another one does not say why
    failed.sort(key=lambda text: "Connection closed by peer" in text)
    assert not failed, failed[0]
    return [json.loads(output.read_text()) for output in outputs]
