"""How tests start commands of the project.

`warm` forks them from a process that has everything imported; `real` starts them as a user does. Tests take `warm`
unless the launcher itself, or the start of a process, is what they test.
"""

from tests.launching.client import REPOSITORY
from tests.launching.commands import (
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
