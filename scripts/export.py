#!/usr/bin/env python
"""Write what a run has for other tools.

python scripts/export.py llama runs/demo-001/checkpoints/step_800 demo-llama
python scripts/export.py snapshots runs/demo-001 analysis/demo-001 --format pico-analyze
"""

import argparse
import sys
from pathlib import Path

from pico_ds.checkpoint.errors import CheckpointError
from pico_ds.checkpoint.llama_export import export_llama
from pico_ds.config import ConfigError
from pico_ds.dynamics.pico_analyze import export_for_pico_analyze
from pico_ds.dynamics.reading import RunSnapshots


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    snapshots = commands.add_parser("snapshots", help="snapshots of learning dynamics")
    snapshots.add_argument("run", type=Path, metavar="RUN", help="directory of a run")
    snapshots.add_argument("out", type=Path, metavar="OUT", help="directory to write; must not exist")
    snapshots.add_argument("--format", choices=["pico-analyze"], default="pico-analyze")
    llama = commands.add_parser("llama", help="a plain LlamaForCausalLM, without code of this package")
    llama.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="directory of a checkpoint")
    llama.add_argument("out", type=Path, metavar="OUT", help="directory to write; must not exist")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    try:
        if arguments.command == "llama":
            said = f"{export_llama(arguments.checkpoint, arguments.out):,} parameters of {arguments.checkpoint}"
        else:
            snapshots = RunSnapshots.of(arguments.run)
            export_for_pico_analyze(snapshots, arguments.out)
            said = f"{len(snapshots.by_step)} snapshots of {arguments.run}"
    except (CheckpointError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
