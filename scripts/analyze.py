#!/usr/bin/env python
"""Summarize the recorded learning dynamics of a run as a table, JSON and a page of figures.

python scripts/analyze.py runs/demo-001
python scripts/analyze.py runs/demo-001 --split train --out analysis
"""

import argparse
import json
import sys
from dataclasses import asdict
from math import isfinite
from pathlib import Path

from rich.table import Table as TerminalTable

from pico_ds.command_line import exit_code_of
from pico_ds.console import make_console
from pico_ds.dynamics.snapshot_analysis import analyze
from pico_ds.dynamics.snapshot_reader import SPLITS, RunSnapshots
from pico_ds.file_writing import replace_text
from pico_ds.monitoring.report.dynamics_panels import dynamics_sections, dynamics_table
from pico_ds.monitoring.report.html_page import write_page
from pico_ds.monitoring.report.panels import Table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--split", choices=SPLITS, default="val", help="rows of the activations and gradients")
    parser.add_argument("--out", type=Path, help="output directory (default: RUN/analysis)")
    return parser.parse_args()


def main() -> int:
    arguments, console = parse_arguments(), make_console()
    measurements = list(analyze(RunSnapshots.of(arguments.run), arguments.split))
    table = dynamics_table(measurements, arguments.split)
    make_console(width=max(120, console.width)).print(_for_terminal(table))
    out = arguments.out or arguments.run / "analysis"
    path = out / f"{arguments.split}.json"
    # JSON has no NaN; the similarity of a single row, for example, is NaN
    records = [
        {**asdict(measurement), "value": measurement.value if isfinite(measurement.value) else None}
        for measurement in measurements
    ]
    replace_text(path, json.dumps(records, indent=1, allow_nan=False) + "\n")
    page = out / f"{arguments.split}.html"
    write_page(
        page, f"{arguments.run.resolve().name}: learning dynamics", None, dynamics_sections(measurements), [table]
    )
    console.print(f"values: {path}\nfigures: {page}", soft_wrap=True)
    return 0


def _for_terminal(table: Table) -> TerminalTable:
    terminal_table = TerminalTable(title=table.title, title_justify="left")
    for column in table.columns:
        terminal_table.add_column(column, no_wrap=True, justify="right" if column.startswith("step") else "left")
    for row in table.rows:
        terminal_table.add_row(*row)
    return terminal_table


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
