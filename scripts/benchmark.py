#!/usr/bin/env python
"""Benchmark the package against lower bounds measured on the same machine. Prints tables and writes JSON.

python scripts/benchmark.py all                             1B models on a GPU, small models on CPU
python scripts/benchmark.py fomaml --stages 1 --tasks 4     a single benchmark
python scripts/benchmark.py checkpoint --size 1b --ranks 8  one GPU per rank

Every measurement runs in a separate process. When it finishes, its rows are printed and added to the JSON file. `all`
runs the most important measurements first, in case it is interrupted.
"""

import argparse
import json
import os

# torch reads this when it is imported; without large pages, a load on CPU spends a quarter of its time mapping memory
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.hardware_figures import SOURCES, Cluster
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pico_ds.command_line import exit_code_of
from pico_ds.console import make_console

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = {
    "attention": "forward and backward pass of every available attention kernel",
    "lm": "autoregressive step with each ZeRO stage, compared with plain passes",
    "fomaml": "first-order MAML step that adapts all weights, with each ZeRO stage, compared with plain passes",
    "head": "meta step that adapts only the head, with 10 inner steps",
    "memory": "peak memory of an autoregressive step and of a meta step",
    "tasks": "many small tasks with a small model, compared with a plain PyTorch loop",
    "feeding": "time that a step with many small sampled tasks waits for its data",
    "comm": "collectives of an outer step, by ZeRO stage, inner steps and tasks per rank",
    "sampling": "tasks and rows per second on one core",
    "index": "decoding and indexing of a pool of token rows",
    "prepare": "preparation of token shards from text, compared with only the tokenizer",
    "scaling": "steps on 1, 2 and 4 ranks, a fitted cost model, and its projection to 8, 64 and 512 GPUs",
    "checkpoint": "save, verify and load, compared with the raw disk, DeepSpeed and DCP",
    "snapshots": "cost of a snapshot of learning dynamics, with the demo and with the model",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        **COMMANDS,
        "all": "attention, lm, fomaml, head, memory, tasks, feeding, comm and sampling",
    }.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--size", help="model of configs/pico-<size>.yaml; default 1b on a GPU, tiny on CPU")
        command.add_argument("--ranks", type=int, nargs="+", help="world sizes to measure")
        command.add_argument("--repeats", type=int, default=3, help="timings after the warm-up; results are medians")
        command.add_argument("--json", type=Path, default=Path(f"benchmark-{name}.json"), help="file for the results")
        command.add_argument(
            "--directory", type=Path, help="working directory, on the disk to measure; default: temporary"
        )
        command.add_argument(
            "--stages", type=int, nargs="+", help="ZeRO stages; default 1 2 3, comm: 0 1 2 3, snapshots and scaling: 1"
        )
        command.add_argument(
            "--rows", type=int, help="rows per micro-batch and rank, contexts per set, or rows per pool"
        )
        command.add_argument("--megabytes", type=int, default=100, help="size of the text of prepare")
        command.add_argument("--micro_batches", type=int, default=1, help="micro-batches per autoregressive step")
        command.add_argument("--length", type=int, help="length of a row or context [tokens]")
        command.add_argument("--tasks", type=int, help="tasks per step and rank")
        command.add_argument("--inner_steps", type=int, default=3)
        command.add_argument("--head", choices=["linear", "prototype"], default="linear", help="meta.head")
        command.add_argument("--steps", type=int, help="steps per timing; default 5 on a GPU, 1 on CPU")
        command.add_argument(
            "--against",
            choices=["plain", "loop", "nothing"],
            help="lower bound to compare with; depends on the command",
        )
        command.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="override the config")
        command.add_argument("--timeout_seconds", type=float, default=900.0, help="limit of one measurement")
        command.add_argument(
            "--deepspeed_config",
            type=Path,
            default=REPOSITORY / "ds_configs" / "zero1.json",
            help="only for checkpoint",
        )
        for worker_option in ("--worker", "--measure", "--label"):
            command.add_argument(worker_option, help=argparse.SUPPRESS)
        command.add_argument("--stage", type=int, default=1, help=argparse.SUPPRESS)
        if name == "scaling":
            _add_projection(command)
    return parser.parse_args()


def _add_projection(command: argparse.ArgumentParser) -> None:
    """Add the options with which `scaling` projects the performance of GPUs that are not available."""
    group = command.add_argument_group("projection", "properties of a cluster; every default is an assumption")
    # the destination is not `config`, because --size chooses the measured configuration
    group.add_argument(
        "--config", dest="projected_config", type=Path, default=REPOSITORY / "configs" / "pico-maml-1b.yaml"
    )
    group.add_argument("--config_set", dest="projected_set", nargs="*", default=[], metavar="section.key=value")
    group.add_argument("--gpus", type=_positive_int, nargs="+", default=[8, 64, 512])
    group.add_argument("--no_measurements", action="store_true", help="only project")
    for field in fields(Cluster):
        number_type = _positive_int if isinstance(field.default, int) else _positive
        text = SOURCES[field.name].replace("%", "%%")
        group.add_argument(
            f"--{field.name}", type=number_type, default=field.default, help=f"default %(default)s: {text}"
        )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer of at least 1")
    return value


def print_results(console: Console, results: list[dict[str, Any]]) -> None:
    """Print one table per command, with one column per figure."""
    for command in dict.fromkeys(row["command"] for row in results):
        rows = [row for row in results if row["command"] == command]
        columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "command"]
        # the resolved configurations are only in the JSON file
        columns = [name for name in columns if any(not isinstance(row.get(name), dict | None) for row in rows)]
        table = Table(*columns, title=command, title_justify="left", box=SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(_format_value(row.get(name)) for name in columns))
        console.print(table)


def _format_value(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def main() -> int:
    arguments = parse_arguments()
    if arguments.worker is not None:
        from benchmarks.rank_worker import measure

        measure(arguments, REPOSITORY)
        return 0
    from benchmarks.efficiency import conclude
    from benchmarks.measurements import measurements, run
    from benchmarks.projection import projection_of
    from benchmarks.provenance import provenance

    settings = {name: str(value) for name, value in vars(arguments).items()}
    header, results = {"settings": settings, **provenance()}, []
    console = make_console(width=max(240, make_console().width))
    print(json.dumps(header))
    projected = []
    if arguments.command == "scaling":
        # project first, so that a wrong configuration fails before the measurements, which take minutes
        projected = projection_of(arguments, REPOSITORY)
    planned = [] if projected and arguments.no_measurements else measurements(arguments)
    for number, measurement in enumerate(planned, start=1):
        started = time.perf_counter()
        rows = run(arguments, measurement, __file__)
        results += rows
        arguments.json.write_text(json.dumps({**header, "results": results}, indent=1) + "\n")
        for row in rows:
            shown = {name: value for name, value in row.items() if value is not None and not isinstance(value, dict)}
            print("  ".join(f"{name} {_format_value(value)}" for name, value in shown.items()))
        print(f"{number} of {len(planned)} done, {time.perf_counter() - started:.0f} s", flush=True)
    if arguments.command == "scaling":
        results = [*(conclude(results, on_gpu=header["device"] != "cpu") if planned else []), *projected]
        arguments.json.write_text(json.dumps({**header, "results": results}, indent=1) + "\n")
    print_results(console, results)
    print(f"written to {arguments.json}")
    return int(any("failed" in row for row in results))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
