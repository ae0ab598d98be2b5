#!/usr/bin/env python
"""Check correctness and speed on the GPUs of this machine. Without a GPU, check everything at toy size on the CPU.

    python scripts/gpu_check.py                    about 8 minutes
    python scripts/gpu_check.py --full             about 30 minutes
    python scripts/gpu_check.py --parts kernels lm

Every part runs in a separate process. After each part, its results are printed and written to gpu_check.json and
gpu_check.md, so an interrupted check keeps its results. No network is needed. docs/performance.md lists the packages.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_checks.results import PartResult, Report, Result

from pico_ds.command_line import exit_code_of

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Machine:
    """What a part runs on.

    Attributes:
        n_gpus: number of GPUs; 0 for the CPU.
        directory: directory for the files of the part.
        full: whether the long form runs.
    """

    n_gpus: int
    directory: Path
    full: bool


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        run: returns the results and the raw rows.
        in_full_only: whether only the long form runs the part.
    """

    title: str
    run: Callable[[Machine], tuple[list[Result], list[dict[str, Any]]]]
    in_full_only: bool = False


def on_ranks(function: str, machine: Machine) -> tuple[list[Result], list[dict[str, Any]]]:
    """Run a function of `gpu_checks.agreement` with one process per GPU."""
    out = machine.directory / "agreement.json"
    command = [sys.executable]
    if machine.n_gpus > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(machine.n_gpus)]
    done = subprocess.run(
        [*command, __file__, "--function", function, "--out", str(out)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-3000:])
    return [Result(**content) for content in json.loads(out.read_text())], []


def with_demo_runs(function: str, machine: Machine) -> tuple[list[Result], list[dict[str, Any]]]:
    """Run a function of `gpu_checks.training_runs`."""
    from gpu_checks import training_runs

    runs = training_runs.DemoRuns(machine.directory, max(1, machine.n_gpus), toy=machine.n_gpus == 0)
    return getattr(training_runs, function)(runs), []


def with_benchmark(
    arguments: tuple[str, ...], judge: str, machine: Machine
) -> tuple[list[Result], list[dict[str, Any]]]:
    """Run a benchmark, and apply a function of `gpu_checks.speed` to its rows."""
    from gpu_checks import speed

    toy = machine.n_gpus == 0
    rows = speed.run_benchmark(machine.directory, toy, *arguments)
    return getattr(speed, judge)(rows, toy), rows


#: in the order of importance, in case the time is not enough for all
PARTS = {
    "kernels": Part("attention kernels against fp32", partial(on_ranks, "check_kernels")),
    "zero": Part("FOMAML under ZeRO 1 to 3 against a CPU loop", partial(on_ranks, "check_zero_stages")),
    "compile": Part("compiled against eager", partial(on_ranks, "check_compilation")),
    "batches": Part("batched tasks against a loop", partial(on_ranks, "check_batched_tasks")),
    "lm": Part("autoregressive step", partial(with_benchmark, ("lm", "--stages", "1"), "language_model")),
    "fomaml": Part("FOMAML step", partial(with_benchmark, ("fomaml", "--stages", "1"), "fomaml")),
    "head": Part("meta step that adapts only the head", partial(with_benchmark, ("head",), "head_only")),
    "tasks": Part("many small tasks", partial(with_benchmark, ("tasks",), "small_tasks")),
    "resume": Part("resume and kill, in bf16", partial(with_demo_runs, "check_resume")),
    "snapshots": Part("snapshots against the CPU", partial(with_demo_runs, "check_snapshots")),
    "demo": Part("the demo", partial(with_demo_runs, "check_demo")),
    "comm": Part("collectives of a step", partial(with_benchmark, ("comm",), "collectives")),
    "lm3": Part("autoregressive step, ZeRO 3", partial(with_benchmark, ("lm", "--stages", "3"), "language_model")),
    "fomaml3": Part(
        "FOMAML step, ZeRO 3", partial(with_benchmark, ("fomaml", "--stages", "3"), "fomaml"), in_full_only=True
    ),
    "lm2": Part(
        "autoregressive step, ZeRO 2", partial(with_benchmark, ("lm", "--stages", "2"), "language_model"), True
    ),
    "fomaml2": Part("FOMAML step, ZeRO 2", partial(with_benchmark, ("fomaml", "--stages", "2"), "fomaml"), True),
    "checkpoint": Part(
        "save and load", partial(with_benchmark, ("checkpoint", "--ranks", "1"), "checkpoints"), in_full_only=True
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also run the parts that take long")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], help="run only these parts")
    parser.add_argument("--minutes", type=float, help="start no part after this time; default 8, with --full 30")
    parser.add_argument("--out", type=Path, default=Path(), help="directory for gpu_check.json and gpu_check.md")
    for hidden in ("--part", "--function"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_part(name: str, full: bool, seconds_left: float) -> PartResult:
    """Run a part in a new process."""
    part, started = PARTS[name], time.monotonic()
    result = PartResult(name, part.title, "failed")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as directory:
        out = Path(directory) / "part.json"
        command = [sys.executable, __file__, "--part", name, "--out", str(out), *(["--full"] if full else [])]
        try:
            done = subprocess.run(command, check=False, timeout=max(60.0, seconds_left))
            result.problem = f"exit code {done.returncode}, see its output"
        except subprocess.TimeoutExpired:
            result.state, result.problem = "skipped", "not finished in time"
        if out.exists():
            content = json.loads(out.read_text())
            result.state, result.problem = "done", ""
            result.results = [Result(**each) for each in content["results"]]
            result.rows = content["rows"]
    result.seconds = time.monotonic() - started
    return result


def main() -> int:
    arguments = parse_arguments()
    if arguments.function is not None:
        return _call_on_ranks(arguments.function, arguments.out)
    n_gpus = torch.cuda.device_count()
    if arguments.part is not None:
        machine = Machine(n_gpus, arguments.out.parent, arguments.full)
        results, rows = PARTS[arguments.part].run(machine)
        content = {"results": [asdict(result) for result in results], "rows": rows}
        arguments.out.write_text(json.dumps(content))
        return 0
    from benchmarks.provenance import provenance

    if n_gpus == 0:
        print("there is no GPU: every part runs at toy size on the CPU, and goals of speed do not apply", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    minutes = arguments.minutes or (30 if arguments.full else 8)
    end = time.monotonic() + (60 * minutes if n_gpus or arguments.minutes else 3600)
    report = Report(arguments.out, provenance())
    names = arguments.parts or [name for name, part in PARTS.items() if arguments.full or not part.in_full_only]
    for name in names:
        left = end - time.monotonic()
        if left <= 0:
            part = PartResult(name, PARTS[name].title, "skipped", problem="no time left")
        else:
            print(f"{PARTS[name].title} ...", flush=True)
            part = run_part(name, arguments.full, left)
        report.add(part)
        _print(part)
    good = all(part.is_good for part in report.parts)
    print(f"{'all goals are met' if good else 'not all goals are met'}; see {arguments.out / 'gpu_check.md'}")
    return 0 if good else 1


def _print(part: PartResult) -> None:
    if part.state != "done":
        print(f"  {part.state}: {part.problem}", flush=True)
    for result in part.results:
        mark = {True: "ok    ", False: "MISSED", None: "      "}[result.passed]
        goal = f"  (goal {result.goal})" if result.goal else ""
        print(f"  {mark}  {result.name}: {result.value}{goal}", flush=True)


def _call_on_ranks(function: str, out: Path) -> int:
    """Call a function of `gpu_checks.agreement` on this rank. Rank 0 writes the results."""
    # some parts compare with the reference implementations of the tests
    sys.path.append(str(REPOSITORY))
    from gpu_checks import agreement

    from pico_ds.engine.distributed import start_process, stop_process

    os.chdir(REPOSITORY)
    process = start_process()
    results = getattr(agreement, function)(process)
    if process.is_main:
        out.write_text(json.dumps([asdict(result) for result in results]))
    stop_process()
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
