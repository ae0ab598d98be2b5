"""Writes the report that compares runs: tables first, then curves."""

from collections.abc import Sequence
from pathlib import Path

from pico_ds.monitoring.report.html_page import write_page
from pico_ds.monitoring.report.panels import group_colours
from pico_ds.monitoring.report.run_panels import run_sections
from pico_ds.monitoring.report.run_records import Group
from pico_ds.monitoring.report.run_tables import few_shot_tables, runs_table


def write_report(groups: Sequence[Group], directory: Path) -> Path:
    """Write report.html into a directory. The file needs no network.

    Returns:
        the path of report.html.
    """
    path = directory / "report.html"
    names = [group.name for group in groups]
    title = "pico_ds: " + ", ".join(names)
    legend = group_colours(names) if len(names) > 1 else None
    write_page(path, title, runs_table(groups), run_sections(groups), few_shot_tables(groups), legend)
    return path
