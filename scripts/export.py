#!/usr/bin/env python
"""Export models and snapshots for other tools.

python scripts/export.py llama runs/demo-001/checkpoints/step_800 demo-llama
python scripts/export.py pico runs/demo-001/checkpoints/step_800 demo-pico
python scripts/export.py snapshots runs/demo-001 analysis/demo-001 --format pico-analyze
"""

import argparse
import sys
from pathlib import Path

from pico_ds.checkpoint.llama_and_pico_train_export import LLAMA, PICO_TRAIN, export_model
from pico_ds.command_line import exit_code_of
from pico_ds.dynamics.pico_analyze_export import export_for_pico_analyze
from pico_ds.dynamics.snapshot_reader import RunSnapshots

LAYOUTS = {"llama": LLAMA, "pico": PICO_TRAIN}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    snapshots = commands.add_parser("snapshots", help="snapshots of learning dynamics")
    snapshots.add_argument("run", type=Path, metavar="RUN", help="directory of a run")
    snapshots.add_argument("out", type=Path, metavar="OUT", help="directory to write; must not exist")
    snapshots.add_argument("--format", choices=["pico-analyze"], default="pico-analyze")
    for name, text in (
        ("llama", "a plain LlamaForCausalLM, which needs no code of pico_ds"),
        ("pico", "a model with the names and configuration of pico-train"),
    ):
        model = commands.add_parser(name, help=text)
        model.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="directory of a checkpoint")
        model.add_argument("out", type=Path, metavar="OUT", help="directory to write; must not exist")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.command in LAYOUTS:
        count = export_model(arguments.checkpoint, arguments.out, LAYOUTS[arguments.command])
        message = f"{count:,} parameters of {arguments.checkpoint}"
    else:
        snapshots = RunSnapshots.of(arguments.run)
        export_for_pico_analyze(snapshots, arguments.out)
        message = f"{len(snapshots.by_step)} snapshots of {arguments.run}"
    print(f"{arguments.out}: {message}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
