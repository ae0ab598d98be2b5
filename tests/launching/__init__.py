"""Start commands of the project in tests.

`warm` forks commands from a process that has already imported everything; `real` starts new processes, as a user does.
Tests use `warm` unless they test a launcher or the start of a process.
"""

from tests.launching.fork_client import REPOSITORY
from tests.launching.launchers import (
    BIN,
    Launcher,
    Process,
    environment,
    free_port,
    rank_variables,
    real,
    run_ranks,
    two_agents,
    warm,
)

__all__ = [
    "BIN",
    "REPOSITORY",
    "Launcher",
    "Process",
    "environment",
    "free_port",
    "rank_variables",
    "real",
    "run_ranks",
    "two_agents",
    "warm",
]
