#!/usr/bin/env python
"""Write an HTML page that compares runs with curves and few-shot tables. The page needs no network.

    python scripts/report.py runs/fomaml runs/ar --out report

Runs that differ only in their seed are one experiment, and bands show the range over its seeds. The few-shot tables
show the results of `scripts/evaluate.py few-shot`.
"""

import argparse
import sys
from pathlib import Path

from pico_ds.command_line import exit_code_of
from pico_ds.monitoring.report.run_records import Record, group_by_experiment
from pico_ds.monitoring.report.run_report import write_report
from pico_ds.progress import track


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--out", type=Path, default=Path("report"), help="directory to write to")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    groups = group_by_experiment(
        [Record.read(path) for path in track(arguments.runs, "reading runs", len(arguments.runs))]
    )
    for record in (record for group in groups for record in group.records if record.damaged_lines):
        print(f"warning: {record.path}: {record.damaged_lines} invalid line(s) of logs/metrics.jsonl are ignored")
    print(write_report(groups, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
