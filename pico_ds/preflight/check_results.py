"""Results of the checks, and the ranks that have a problem."""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pico_ds.engine.distributed import Process

#: maximum number of ranks that one message lists
_MAX_LISTED_RANKS = 8


@dataclass(frozen=True)
class Finding:
    """Result of one check over all ranks: one row of the table.

    Attributes:
        problems: one message per problem, which says what is wrong and what to do; empty if the check passed.
    """

    check: str
    found: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankResult:
    """Result of one check on one rank."""

    found: str
    problem: str | None = None


def gather_finding(check: str, local: RankResult, process: Process) -> Finding:
    """Combine the results of all ranks into one finding. Every rank must call this.

    The finding shows up to three different results, in rank order, and lists every different problem with the ranks
    that have it.
    """
    texts = process.gather_texts(json.dumps([local.found, local.problem, socket.gethostname()]))
    ranks = [json.loads(text) for text in texts]
    by_problem: dict[str, list[str]] = {}
    for rank, (_, problem, host) in enumerate(ranks):
        if problem is not None:
            by_problem.setdefault(problem, []).append(f"{rank} ({host})")
    problems = [f"rank {format_ranks(labels)}: {problem}" for problem, labels in by_problem.items()]
    different = dict.fromkeys(found for found, _, _ in ranks)
    return Finding(check, "; ".join([*different][:3]), tuple(problems))


def format_ranks(ranks: Sequence[str]) -> str:
    """Return the first few ranks as text, and the number of the remaining ranks."""
    more = len(ranks) - _MAX_LISTED_RANKS
    return ", ".join(ranks[:_MAX_LISTED_RANKS]) + (f" and {more} more" if more > 0 else "")


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return a table with the columns check, finding, and "ok" or "fail"."""
    table = Table("check", "finding", "", box=SIMPLE_HEAD, title="preflight", title_justify="left")
    for finding in findings:
        table.add_row(finding.check, finding.found, Text("fail", "red") if finding.problems else Text("ok", "green"))
    return table
