"""Results of the parts, and the page and the JSON file that show them."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pico_ds.file_writing import replace_text


@dataclass(frozen=True)
class Result:
    """One figure of a part.

    Attributes:
        value: the figure, with its unit.
        goal: the goal with its unit, or empty if there is none.
        passed: whether the goal is met; None if there is no goal or it does not apply to this machine.
    """

    name: str
    value: str
    goal: str = ""
    passed: bool | None = None


@dataclass
class PartResult:
    """The outcome of one part.

    Attributes:
        state: `done`, `failed`, or `skipped` if there was no time left or the machine cannot run it.
        seconds: duration of the part [s].
        problem: why it failed or was skipped.
        rows: raw rows of a benchmark, for the JSON file.
    """

    name: str
    title: str
    state: str
    seconds: float = 0.0
    problem: str = ""
    results: list[Result] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing failed."""
        return self.state != "failed" and all(result.passed is not False for result in self.results)


def at_most(name: str, value: float, limit: float, unit: str, applies: bool = True) -> Result:
    """Return a result that must not exceed a limit."""
    return Result(name, _number(value, unit), f"<= {_number(limit, unit)}", value <= limit if applies else None)


def at_least(name: str, value: float, limit: float, unit: str, applies: bool = True) -> Result:
    """Return a result that must reach a limit."""
    return Result(name, _number(value, unit), f">= {_number(limit, unit)}", value >= limit if applies else None)


def figure(name: str, value: float, unit: str) -> Result:
    """Return a result without a goal."""
    return Result(name, _number(value, unit))


def _number(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


class Report:
    """Writes `gpu_check.json` and `gpu_check.md` after every part, so that an interrupted check keeps its results."""

    def __init__(self, directory: Path, header: dict[str, Any]) -> None:
        """
        Args:
            header: hardware, versions and commit.
        """
        self._directory, self._header = directory, header
        self._started = time.time()
        self.parts: list[PartResult] = []

    def add(self, part: PartResult) -> None:
        """Add the outcome of a part, and write both files."""
        self.parts.append(part)
        content = {**self._header, "parts": [asdict(each) for each in self.parts]}
        replace_text(self._directory / "gpu_check.json", json.dumps(content, indent=1) + "\n")
        replace_text(self._directory / "gpu_check.md", self._page())

    def _page(self) -> str:
        header, versions = self._header, self._header["versions"]
        lines = [
            "# GPU check",
            "",
            f"{header['devices']} x {header['device']}, {header['processor']}, {header['cores']} cores. "
            f"Python {header['python']}, cuDNN {header['cudnn']}, "
            + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
            + f". Commit {header['commit']}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime(self._started))} UTC.",
            "",
            "| part | result | value | goal | met |",
            "|---|---|---|---|---|",
        ]
        for part in self.parts:
            lines += _table_rows(part)
        return "\n".join(lines) + "\n"


def _table_rows(part: PartResult) -> Sequence[str]:
    head = f"{part.title} ({part.seconds:.0f} s)"
    if part.state != "done":
        return [f"| {head} | {part.state}: {part.problem} | | | {'no' if part.state == 'failed' else ''} |"]
    marks = {True: "yes", False: "no", None: ""}
    return [
        f"| {head if number == 0 else ''} | {result.name} | {result.value} | {result.goal} | {marks[result.passed]} |"
        for number, result in enumerate(part.results)
    ]
