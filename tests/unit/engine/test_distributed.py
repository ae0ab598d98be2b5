"""A process without other ranks."""

import subprocess
import sys
from typing import Any

import deepspeed.comm
import pytest
import torch

from pico_ds.engine.distributed import Process, host_digest
from tests.launching import REPOSITORY

PRINT = "from pico_ds.engine.distributed import host_digest; print(host_digest())"


def test_nodes_with_the_same_hostname_are_distinguished() -> None:
    """Two containers of one image have the same hostname but separate process ids."""
    assert host_digest() == host_digest()
    other = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", PRINT],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    if other.returncode != 0:
        pytest.skip(f"process namespaces are not permitted: {other.stderr.strip()[-200:]}")
    assert int(other.stdout) != host_digest()


@pytest.mark.parametrize(("backend", "expected"), [("nccl", [3]), ("gloo", None)])
def test_barrier_passes_the_device_to_nccl(
    monkeypatch: pytest.MonkeyPatch, backend: str, expected: list[int] | None
) -> None:
    """Without a device, NCCL guesses it and prints a warning."""
    seen: list[Any] = []
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(deepspeed.comm, "barrier", lambda device_ids=None: seen.append(device_ids))
    Process(0, 1, 3, torch.device("cpu")).wait_for_all()
    assert seen == [expected]
