"""Runs benchmarks, and compares their figures with goals and with the plan of a dry run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pico_ds.config import RunConfig
from pico_ds.planning.run_plan import make_plan

from .results import Result, at_least, at_most, figure

_BENCHMARK = Path(__file__).resolve().parents[1] / "benchmark.py"
#: options that make a benchmark take seconds on a CPU
_TOY = ("--rows", "2", "--length", "32", "--repeats", "1", "--steps", "1", "--size", "tiny")
#: goals on an H100, of the 1B model in bf16 (docs/performance.md)
_MIN_UTILIZATION = {1: 0.62, 2: 0.62, 3: 0.58}
_MAX_OVER_PLAIN = 1.05
_MAX_HEAD_SECONDS = 0.085
_MIN_OVER_LOOP = 15.0


def run_benchmark(directory: Path, toy: bool, *arguments: str) -> list[dict[str, Any]]:
    """Run scripts/benchmark.py. Returns its rows."""
    out = directory / "benchmark.json"
    command = [sys.executable, str(_BENCHMARK), *arguments, "--json", str(out)]
    if toy:
        command += [*_TOY, *(() if "--stages" in arguments else ("--stages", "1"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.exists():
        raise RuntimeError(f"{' '.join(arguments)}: exit code {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    rows: list[dict[str, Any]] = json.loads(out.read_text())["results"]
    for row in rows:
        if "failed" in row:
            raise RuntimeError(f"{' '.join(arguments)}: {row['failed']}: {(done.stdout + done.stderr)[-3000:]}")
    return rows


def language_model(rows: list[dict[str, Any]], toy: bool) -> list[Result]:
    """Return the utilization and the peak memory of autoregressive steps."""
    results = []
    for row in rows:
        title = f"ZeRO {row['stage']}"
        if row["model_flops_utilization"] is not None:
            goal = _MIN_UTILIZATION[row["stage"]]
            results.append(at_least(f"{title}: MFU", row["model_flops_utilization"], goal, "", applies=not toy))
        results.append(figure(f"{title}: throughput", row["tokens_per_second"], "tokens/s"))
        results += _memory(title, row, "ar")
    return results


def fomaml(rows: list[dict[str, Any]], toy: bool) -> list[Result]:
    """Return the time of FOMAML steps, relative to as many plain passes, and their peak memory."""
    results = []
    for row in rows:
        title = f"ZeRO {row['stage']}"
        results.append(at_most(f"{title}: over plain", row["over_plain"], _MAX_OVER_PLAIN, "", applies=not toy))
        results.append(figure(f"{title}: step", row["seconds_per_step"], "s"))
        results += _memory(title, row, "meta")
    return results


def head_only(rows: list[dict[str, Any]], toy: bool) -> list[Result]:
    """Return the time of a step that adapts only the head."""
    (row,) = rows
    return [at_most("meta batch of 10 inner steps", row["seconds_per_step"], _MAX_HEAD_SECONDS, "s", applies=not toy)]


def small_tasks(rows: list[dict[str, Any]], toy: bool) -> list[Result]:
    """Return the throughput of a small model, relative to a plain loop over the tasks."""
    (row,) = rows
    return [
        figure("throughput", row["tasks_per_second"], "tasks/s"),
        at_least("over a plain loop", row["loop_over_step"], _MIN_OVER_LOOP, "x", applies=not toy),
    ]


def collectives(rows: list[dict[str, Any]], toy: bool) -> list[Result]:
    """Return whether communication depends on inner steps or tasks."""
    results = []
    for stage in sorted({row["stage"] for row in rows}):
        counts = [
            {name: value for name, value in row.items() if isinstance(value, str) and name != "command"}
            for row in rows
            if row["stage"] == stage
        ]
        shown = "; ".join(f"{name} {value}" for name, value in counts[0].items())
        equal = all(other == counts[0] for other in counts)
        results.append(Result(f"ZeRO {stage}", shown, "independent of inner steps and tasks", equal))
    return results


def checkpoints(rows: list[dict[str, Any]], toy: bool) -> list[Result]:
    """Return the times to save and to load."""
    (row,) = (row for row in rows if row["way"] == "pico_ds")
    return [figure(name.replace("_", " "), row[name], "s") for name in row if name.endswith("_seconds")]


def _memory(title: str, row: dict[str, Any], kind: str) -> list[Result]:
    """Return the peak memory, which must not exceed the planned one."""
    if row["peak_memory_gib"] is None:
        return []
    config = RunConfig.model_validate(row["config"])
    assert config.model.vocab_size is not None
    phases = (kind, "update")
    memory = make_plan(config, row["deepspeed_config"], config.model.vocab_size, row["world_size"]).memory
    planned = max(sum(parts.values()) for phase, parts in memory.items() if phase in phases) / 2**30
    return [at_most(f"{title}: peak memory, against the plan", row["peak_memory_gib"], planned, "GiB")]
