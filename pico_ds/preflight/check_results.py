"""What a check found, and on which ranks something is wrong."""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pico_ds.engine.distributed import Process

#: ranks that are named one by one in a sentence
_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        problems: plain sentences that say what is wrong and what to do; none where all is well.
    """

    check: str
    found: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Local:
    """What one rank found by itself."""

    found: str
    problem: str | None = None


def gather_finding(check: str, local: Local, process: Process) -> Finding:
    """What all ranks found: rank 0's words, and every rank's problem. A collective."""
    texts = process.gather_texts(json.dumps([local.found, local.problem, socket.gethostname()]))
    ranks = [json.loads(text) for text in texts]
    by_problem: dict[str, list[str]] = {}
    for rank, (_, problem, host) in enumerate(ranks):
        if problem is not None:
            by_problem.setdefault(problem, []).append(f"{rank} ({host})")
    problems = [f"rank {named(where)}: {problem}" for problem, where in by_problem.items()]
    different = dict.fromkeys(found for found, _, _ in ranks)
    return Finding(check, "; ".join([*different][:3]), tuple(problems))


def named(ranks: Sequence[str]) -> str:
    """The first few ranks, and how many more."""
    more = len(ranks) - _NAMED
    return ", ".join(ranks[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def findings_table(findings: Sequence[Finding]) -> Table:
    """Check, finding, ok or fail."""
    table = Table("check", "finding", "", box=SIMPLE_HEAD, title="preflight", title_justify="left")
    for one in findings:
        table.add_row(one.check, one.found, Text("fail", "red") if one.problems else Text("ok", "green"))
    return table
