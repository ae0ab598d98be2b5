#!/usr/bin/env python
"""Measure the product beside the floor that the machine sets; prints a table and writes JSON.

python scripts/benchmark.py checkpoint                      1, 2 and 4 ranks on this machine
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checkpoint = commands.add_parser("checkpoint", help="save, verify and load against raw disk, DeepSpeed and DCP")
    checkpoint.add_argument("--size", default="small", help="the model of configs/pico-<size>.yaml")
    checkpoint.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="world sizes, one after another")
    checkpoint.add_argument("--deepspeed_config", type=Path, default=REPOSITORY / "ds_configs" / "zero1.json")
    checkpoint.add_argument("--repeats", type=int, default=3, help="after one that is not counted; medians are shown")
    checkpoint.add_argument("--directory", type=Path, help="on the disk to measure; default: a temporary directory")
    checkpoint.add_argument("--json", type=Path, default=Path("benchmark-checkpoint.json"), help="results")
    checkpoint.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_checkpoint(arguments: argparse.Namespace) -> None:
    """One rank's part; rank 0 writes what was found."""
    from pico_ds.benchmark.checkpoint import CheckpointBenchmark
    from pico_ds.config import load_config
    from pico_ds.config.deepspeed import load_deepspeed_config
    from pico_ds.engine.distributed import start_process, stop_process

    process = start_process()
    config = load_config(REPOSITORY / "configs" / f"pico-{arguments.size}.yaml")
    deepspeed_json = load_deepspeed_config(arguments.deepspeed_config)
    assert config.model.vocab_size is not None
    benchmark = CheckpointBenchmark(config, deepspeed_json, config.model.vocab_size, process, arguments.directory)
    found = benchmark.run(arguments.repeats)
    if process.is_main:
        arguments.worker.write_text(json.dumps(found))
    stop_process()


def launch_checkpoint(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the measurement for every world size."""
    results = []
    for ranks in arguments.ranks:
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.directory) as directory:
            out = Path(directory) / "result.json"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
            command += [__file__, *sys.argv[1:], "--directory", directory, "--worker", str(out)]
            subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})
            results.append(json.loads(out.read_text()))
    return results


def print_checkpoint(console: Console, results: list[dict[str, Any]]) -> None:
    table = Table(
        "ranks", "way", "GB", "stall [s]", "save [s]", "save [GB/s]", "load [s]", "load [GB/s]", "verify [GB/s]"
    )
    for result in results:
        gigabytes = result["bytes"] / 1e9
        for way, seconds in result["seconds"].items():
            checked = seconds.get("verify_seconds")
            table.add_row(
                str(result["world_size"]),
                way,
                f"{gigabytes:.3f}",
                f"{seconds['stall_seconds']:.3f}",
                f"{seconds['save_seconds']:.3f}",
                f"{gigabytes / seconds['save_seconds']:.2f}",
                f"{seconds['load_seconds']:.3f}",
                f"{gigabytes / seconds['load_seconds']:.2f}",
                f"{gigabytes / checked:.2f}" if checked else "",
            )
    console.print(table)


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker is not None:
        measure_checkpoint(arguments)
        return
    from pico_ds.benchmark.provenance import provenance

    results = launch_checkpoint(arguments)
    print_checkpoint(Console(width=120), results)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    arguments.json.write_text(json.dumps({"settings": settings, **provenance(), "results": results}, indent=1) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
