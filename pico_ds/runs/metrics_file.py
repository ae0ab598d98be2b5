"""Parses the records of metrics.jsonl, which are JSON objects with a step and numbers."""

import json
from typing import Any


def parse_record(line: str | bytes) -> dict[str, Any] | None:
    """Return the step and the numbers of a line, or None if it is not a record, such as a truncated line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or found["step"] < 0:
        return None
    return {name: value for name, value in found.items() if value is None or isinstance(value, int | float)}
