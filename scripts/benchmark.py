#!/usr/bin/env python
"""Measure the product beside the floor that the machine sets; prints tables and writes JSON.

python scripts/benchmark.py all                             on a GPU the 1B models, on CPU small ones
python scripts/benchmark.py fomaml --stages 1 --tasks 4     one of them
python scripts/benchmark.py checkpoint --size 1b --ranks 8  one GPU a rank
"""

import argparse
import json
import os

# read when torch is imported: without large pages a quarter of a load on CPU is spent on mapping memory
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = ("lm", "fomaml", "head", "memory", "tasks")
COMMANDS = {
    "attention": "forward and backward of every attention kernel that is there",
    "lm": "step of the language model under each ZeRO stage, against plain passes",
    "fomaml": "first-order MAML, all weights adapted, under each ZeRO stage, against as many plain passes",
    "head": "a meta-batch of which the head alone is adapted, 10 inner steps",
    "memory": "peak memory of a step of both kinds",
    "tasks": "many small tasks of a small model",
    "comm": "collectives of an outer step: stages, inner steps, tasks a rank",
    "sampling": "tasks and rows per second on one core",
    "checkpoint": "save, verify and load against raw disk, DeepSpeed and DCP",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {**COMMANDS, "all": "all of them but checkpoint"}.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--size", help="the model of configs/pico-<size>.yaml; default 1b on a GPU, tiny on CPU")
        command.add_argument("--ranks", type=int, nargs="+", help="world sizes, one after another")
        command.add_argument("--repeats", type=int, default=3, help="after those not counted; medians are shown")
        command.add_argument("--json", type=Path, default=Path(f"benchmark-{name}.json"), help="results")
        command.add_argument("--directory", type=Path, help="on the disk to measure; default: a temporary directory")
        command.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
        command.add_argument("--measured", default=name, help=argparse.SUPPRESS)
        command.add_argument("--stages", type=int, nargs="+", help="ZeRO stages; default 1 2 3, of comm 0 1 2 3")
        command.add_argument("--rows", type=int, help="rows of a step on each rank, or contexts of a set")
        command.add_argument("--length", type=int, help="of a row or context [tokens]")
        command.add_argument("--tasks", type=int, default=4, help="of a step on each rank")
        command.add_argument("--inner_steps", type=int, default=3)
        command.add_argument("--steps", type=int, help="timed together; default 5 on a GPU, 1 on CPU")
        command.add_argument("--against", choices=["plain", "nothing"], default="plain", help="the floor")
        command.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="override the config")
        command.add_argument(
            "--deepspeed_config", type=Path, default=REPOSITORY / "ds_configs" / "zero1.json", help="of checkpoint"
        )
    return parser.parse_args()


def launch(arguments: argparse.Namespace, command: str, ranks: int, *others: str) -> list[dict[str, Any]]:
    """Run a measurement in processes of its own; returns what rank 0 wrote."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.directory) as directory:
        out = Path(directory) / "result.json"
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        line += [__file__, *sys.argv[1:], "--directory", directory, "--worker", str(out), "--measured", command]
        done = subprocess.run([*line, *others], check=False, env={"OMP_NUM_THREADS": "1", **os.environ})
        if done.returncode:
            # one that does not fit into memory must not cost the figures of the others
            return [{"command": command, "failed": f"exit code {done.returncode}, see above", "options": list(others)}]
        return json.loads(out.read_text())


def launch_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    names = [name for name in COMMANDS if name != "checkpoint"] if arguments.command == "all" else [arguments.command]
    results = []
    for name in names:
        ranks = arguments.ranks or {"checkpoint": [1, 2, 4], "comm": [2]}.get(name, [1])
        for world_size in ranks:
            if name in ("lm", "fomaml"):
                for stage in arguments.stages or (1, 2, 3):
                    results += launch(arguments, name, world_size, "--stages", str(stage))
            else:
                results += launch(arguments, name, world_size)
    return results


def print_results(console: Console, results: list[dict[str, Any]]) -> None:
    """One table for each command, a column for each figure."""
    for command in dict.fromkeys(row["command"] for row in results):
        rows = [row for row in results if row["command"] == command]
        columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "command"]
        columns = [name for name in columns if any(row.get(name) is not None for row in rows)]
        table = Table(*columns, title=command)
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
        from pico_ds.benchmark.worker import measure

        measure(arguments, REPOSITORY)
        return 0
    from pico_ds.benchmark.provenance import provenance

    results = launch_all(arguments)
    print_results(Console(width=max(160, Console().width)), results)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    arguments.json.write_text(json.dumps({"settings": settings, **provenance(), "results": results}, indent=1) + "\n")
    print(f"written to {arguments.json}")
    return int(any("failed" in row for row in results))


if __name__ == "__main__":
    sys.exit(main())
