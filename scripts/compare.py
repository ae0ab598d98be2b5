#!/usr/bin/env python
"""Compare the few-shot accuracy of runs on equal held-out tasks, with paired differences to the first run.

    python scripts/compare.py runs/fomaml:fim runs/ar:fimpre

The tasks are keyed by data.split_seed. Runs with equal `data`, `smlmt` and `evaluation` sections have equal tasks.
"""

import argparse
import sys

from rich.table import Table

from pico_ds.command_line import exit_code_of
from pico_ds.console import make_console
from pico_ds.evaluation.few_shot import Estimate
from pico_ds.evaluation.run_comparison import paired_differences, read_entry


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN[:READOUT]", help="directory of a run and, optionally, a readout"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    entries = [read_entry(text) for text in arguments.runs]
    differences = [paired_differences(entries[0], entry) for entry in entries]
    table = Table(title="few-shot accuracy [%] with 95 % intervals over tasks; differences: first run minus this run")
    for column in ("run", "step", "val loss", "before", "after", "diff before", "diff after"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for entry, pair in zip(entries, differences, strict=True):
        table.add_row(
            entry.name,
            str(entry.step),
            "" if entry.validation_loss is None else f"{entry.validation_loss:.3f}",
            *(Estimate.of(values).percent() for values in (entry.few_shot.before, entry.few_shot.after)),
            *("" if entry is entries[0] else difference.percent() for difference in pair),
        )
    make_console(width=max(120, make_console().width)).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
