#!/usr/bin/env python
"""Measure the product beside the floor that the machine sets; prints tables and writes JSON.

python scripts/benchmark.py all                             on a GPU the 1B models, on CPU small ones
python scripts/benchmark.py fomaml --stages 1 --tasks 4     one of them
python scripts/benchmark.py checkpoint --size 1b --ranks 8  one GPU a rank

Every measurement is a process of its own; its rows are printed, and the JSON written, as soon as it is done. Those of
`all` come in the order of what one would ask first, so that a run that is cut off has the most of it.
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

from benchmarks.cluster import SOURCES, Cluster
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pico_ds.command_line import exit_code_of
from pico_ds.console import make_console

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = {
    "attention": "forward and backward of every attention kernel that is there",
    "lm": "step of the language model under each ZeRO stage, against plain passes",
    "fomaml": "first-order MAML, all weights adapted, under each ZeRO stage, against as many plain passes",
    "head": "a meta-batch of which the head alone is adapted, 10 inner steps",
    "memory": "peak memory of a step of both kinds",
    "tasks": "many small tasks of a small model, against a loop over them in plain PyTorch",
    "feeding": "the same with sampled tasks: how long a step waits for its data",
    "comm": "collectives of an outer step: stages, inner steps, tasks a rank",
    "sampling": "tasks and rows per second on one core",
    "index": "decoding and indexing of a pool of token rows",
    "prepare": "text to token shards, against the tokenizer alone",
    "scaling": "steps on 1, 2 and 4 ranks, a cost model of them, and what it says of 8, 64 and 512 GPUs",
    "checkpoint": "save, verify and load against raw disk, DeepSpeed and DCP",
    "snapshots": "what a snapshot of learning dynamics costs, of the demo and of the model",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {**COMMANDS, "all": "the steps: all up to sampling"}.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--size", help="the model of configs/pico-<size>.yaml; default 1b on a GPU, tiny on CPU")
        command.add_argument("--ranks", type=int, nargs="+", help="world sizes, one after another")
        command.add_argument("--repeats", type=int, default=3, help="after those not counted; medians are shown")
        command.add_argument("--json", type=Path, default=Path(f"benchmark-{name}.json"), help="results")
        command.add_argument("--directory", type=Path, help="on the disk to measure; default: a temporary directory")
        command.add_argument(
            "--stages", type=int, nargs="+", help="ZeRO stages; default 1 2 3, of comm 0 1 2 3, of snapshots 1"
        )
        command.add_argument("--rows", type=int, help="of a micro-batch on each rank, contexts of a set, or of a pool")
        command.add_argument("--megabytes", type=int, default=100, help="of text for prepare")
        command.add_argument("--micro_batches", type=int, default=1, help="of a step of lm")
        command.add_argument("--length", type=int, help="of a row or context [tokens]")
        command.add_argument("--tasks", type=int, help="of a step on each rank")
        command.add_argument("--inner_steps", type=int, default=3)
        command.add_argument("--head", choices=["linear", "prototype"], default="linear", help="as meta.head")
        command.add_argument("--steps", type=int, help="timed together; default 5 on a GPU, 1 on CPU")
        command.add_argument("--against", choices=["plain", "loop", "nothing"], help="the floor; default: by command")
        command.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="override the config")
        command.add_argument("--timeout_seconds", type=float, default=900.0, help="of one measurement")
        command.add_argument(
            "--deepspeed_config", type=Path, default=REPOSITORY / "ds_configs" / "zero1.json", help="of checkpoint"
        )
        for of_worker in ("--worker", "--measure", "--label"):
            command.add_argument(of_worker, help=argparse.SUPPRESS)
        command.add_argument("--stage", type=int, default=1, help=argparse.SUPPRESS)
        if name == "scaling":
            _add_projection(command)
    return parser.parse_args()


def _add_projection(command: argparse.ArgumentParser) -> None:
    """Add the options with which `scaling` projects the performance of GPUs that are not available."""
    group = command.add_argument_group("projection", "figures of a cluster; every default is an assumption")
    # the destination is not `config`, because --size chooses the measured configuration
    group.add_argument(
        "--config", dest="projected_config", type=Path, default=REPOSITORY / "configs" / "pico-maml-1b.yaml"
    )
    group.add_argument("--config_set", dest="projected_set", nargs="*", default=[], metavar="section.key=value")
    group.add_argument("--gpus", type=_positive_int, nargs="+", default=[8, 64, 512])
    group.add_argument("--no_measurements", action="store_true", help="project alone")
    for field in fields(Cluster):
        of_type = _positive_int if isinstance(field.default, int) else _positive
        text = SOURCES[field.name].replace("%", "%%")
        group.add_argument(f"--{field.name}", type=of_type, default=field.default, help=f"default %(default)s: {text}")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
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
            table.add_row(*(_shown(row.get(name)) for name in columns))
        console.print(table)


def _shown(value: Any) -> str:
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
        from benchmarks.worker import measure

        measure(arguments, REPOSITORY)
        return 0
    from benchmarks.efficiency import conclude
    from benchmarks.measurements import measurements, run
    from benchmarks.projection import projection_of
    from benchmarks.provenance import provenance

    settings = {name: str(value) for name, value in vars(arguments).items()}
    facts, results = {"settings": settings, **provenance()}, []
    console = make_console(width=max(240, make_console().width))
    print(json.dumps(facts))
    projected = []
    if arguments.command == "scaling":
        # project first, so that a wrong configuration fails before the measurements, which take minutes
        projected = projection_of(arguments, REPOSITORY)
    planned = [] if projected and arguments.no_measurements else measurements(arguments)
    for number, measurement in enumerate(planned, start=1):
        started = time.perf_counter()
        rows = run(arguments, measurement, __file__)
        results += rows
        arguments.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
        for row in rows:
            shown = {name: value for name, value in row.items() if value is not None and not isinstance(value, dict)}
            print("  ".join(f"{name} {_shown(value)}" for name, value in shown.items()))
        print(f"{number} of {len(planned)} done, {time.perf_counter() - started:.0f} s", flush=True)
    if arguments.command == "scaling":
        results = [*(conclude(results, on_gpu=facts["device"] != "cpu") if planned else []), *projected]
        arguments.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    print_results(console, results)
    print(f"written to {arguments.json}")
    return int(any("failed" in row for row in results))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
