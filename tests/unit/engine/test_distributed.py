"""What a process knows of itself without any other."""

import subprocess
import sys

import pytest

from pico_ds.engine.distributed import host_digest
from tests.launching import REPOSITORY

PRINT = "from pico_ds.engine.distributed import host_digest; print(host_digest())"


def test_nodes_of_one_name_are_told_apart() -> None:
    """Containers of one image: the process ids of one mean nothing in the other."""
    assert host_digest() == host_digest()
    other = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", PRINT],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    if other.returncode != 0:
        pytest.skip(f"namespaces of processes are not allowed here: {other.stderr.strip()[-200:]}")
    assert int(other.stdout) != host_digest()
