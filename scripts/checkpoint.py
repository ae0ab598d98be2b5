#!/usr/bin/env python
"""Inspect, verify or consolidate checkpoints.

python scripts/checkpoint.py inspect runs/demo-001/checkpoints/step_800 [--tensors]
python scripts/checkpoint.py verify runs/demo-001
python scripts/checkpoint.py consolidate runs/demo-001/checkpoints/step_800 weights.safetensors
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from pico_ds.checkpoint.checkpoint_commands import consolidate, find_checkpoints, verify
from pico_ds.checkpoint.checkpoint_index import Index
from pico_ds.command_line import exit_code_of
from pico_ds.console import make_console
from pico_ds.errors import CheckpointError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect_parser = commands.add_parser(
        "inspect", help="show the content of a checkpoint, or of all checkpoints of a run"
    )
    inspect_parser.add_argument("path", type=Path, help="a checkpoint or a run")
    inspect_parser.add_argument("--tensors", action="store_true", help="list every parameter and its fragments")
    verify_parser = commands.add_parser(
        "verify", help="compare all files with their hashes, and check that each parameter is complete"
    )
    verify_parser.add_argument("path", type=Path, help="a checkpoint or a run")
    consolidate_parser = commands.add_parser("consolidate", help="write the fp32 weights into one safetensors file")
    consolidate_parser.add_argument("path", type=Path, help="a checkpoint")
    consolidate_parser.add_argument("out", type=Path, help="file to write; must not exist")
    return parser.parse_args()


def inspect(console: Console, checkpoint: Path, tensors: bool) -> bool:
    """Print the content of a checkpoint. A damaged checkpoint is reported on stderr instead of raising an error.

    Returns:
        False if the checkpoint is damaged.
    """
    try:
        index = Index.read(checkpoint)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    print_inspection(console, checkpoint, index, tensors)
    return True


def print_inspection(console: Console, checkpoint: Path, index: Index, tensors: bool) -> None:
    count = sum(record.numel for record in index.parameters.values())
    mib = sum(record.size_bytes for record in index.files.values()) / 2**20
    lines = {
        "checkpoint": str(checkpoint),
        "step": f"{index.step:,} ({index.optimizer_steps:,} of the optimizer)",
        "progress": ", ".join(f"{name} {value:,}" for name, value in index.progress.items() if name != "step"),
        "parameters": f"{count:,} in {len(index.parameters)} tensors",
        "written by": f"{index.world_size} rank(s), ZeRO stage {index.zero_stage}, {index.precision}",
        "size": f"{mib:,.1f} MiB in {len(index.files)} files",
        "next lr": f"{index.schedule.next_lr:.3e} ({index.schedule.lr_schedule})",
        "versions": ", ".join(f"{name} {version}" for name, version in index.environment.get("versions", {}).items()),
        "format": f"{index.format} {index.format_version}",
    }
    for name, value in lines.items():
        console.print(f"{name:<12}{value}", soft_wrap=True)
    for name, record in index.parameters.items() if tensors else ():
        console.print(f"{name}  {list(record.shape)}", soft_wrap=True)
        for part in record.fragments:
            elements = f"  elements {part.offset} to {part.offset + part.length} in {part.file}"
            console.print(elements, soft_wrap=True)
    console.print()


def main() -> int:
    arguments, console = parse_arguments(), make_console()
    if arguments.command == "inspect":
        shown = [inspect(console, path, arguments.tensors) for path in find_checkpoints(arguments.path)]
        return int(not all(shown))
    elif arguments.command == "verify":
        damaged = False
        for checkpoint in find_checkpoints(arguments.path):
            problems = list(verify(checkpoint))
            damaged |= bool(problems)
            for line in problems or [f"{checkpoint}: all files match their hashes, and all parameters are complete"]:
                console.print(line, soft_wrap=True)
        return int(damaged)
    else:
        count = consolidate(arguments.path, arguments.out)
        console.print(f"{arguments.out}: {count:,} fp32 parameters", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
