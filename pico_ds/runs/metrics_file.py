"""Parses and rewinds metrics.jsonl, whose records are JSON objects with a step and numbers."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pico_ds.file_writing import add_path_to_errors, replace_text

logger = logging.getLogger("pico_ds")


def parse_record(line: str | bytes) -> dict[str, Any] | None:
    """Return the step and the numbers of a line, or None if the line is not a valid record."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or found["step"] < 0:
        return None
    return {name: value for name, value in found.items() if value is None or isinstance(value, int | float)}


def rewind_metrics(path: Path, step: int) -> bool:
    """Move lines to metrics.superseded.jsonl if a run that resumes from `step` writes them again.

    Returns:
        whether any record was moved.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    kept: list[str] = []
    dropped: list[str] = []
    damaged_count = 0
    for line in text.splitlines(keepends=True):
        record = parse_record(line)
        damaged_count += record is None
        (kept if record is not None and _is_kept(record, step) else dropped).append(line)
    if dropped:
        superseded = path.with_name("metrics.superseded.jsonl")
        with add_path_to_errors(superseded), superseded.open("a", encoding="utf-8") as file:
            file.writelines(line if line.endswith("\n") else line + "\n" for line in dropped)
        replace_text(path, "".join(kept))
    if damaged_count:
        logger.warning(
            "warning: %d line(s) of %s are not records (the last line may be truncated); they were moved to "
            "metrics.superseded.jsonl",
            damaged_count,
            path,
        )
    return len(dropped) > damaged_count


def _is_kept(record: Mapping[str, Any], step: int) -> bool:
    # the evaluation of a step runs after its checkpoint, so a resumed run repeats it
    is_training = "lr" in record
    return bool(record["step"] < step or (record["step"] == step and is_training))
