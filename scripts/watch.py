#!/usr/bin/env python
"""Show the progress of a running or finished run: state, losses, speed and last checkpoint.

    python scripts/watch.py runs/demo-001
    python scripts/watch.py runs/demo-001 --once

It reads only the files of the run and needs no GPU. Press Ctrl-C to exit.
"""

import argparse
import sys
from pathlib import Path

from pico_ds.command_line import exit_code_of
from pico_ds.console import make_console
from pico_ds.monitoring.watch.run_view import RunView
from pico_ds.monitoring.watch.watch_screen import watch


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument(
        "--once", action="store_true", help="print one frame and exit; the default if the output is not a terminal"
    )
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="time between updates")
    arguments = parser.parse_args()
    if not arguments.every > 0:
        parser.error(f"argument --every: got {arguments.every}; give a number of seconds above 0")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    try:
        watch(RunView(arguments.run), make_console(), arguments.every, arguments.once)
    except KeyboardInterrupt:
        # Ctrl-C before the first frame
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
