"""Records of metrics.jsonl: JSON objects with a step and numbers."""

import json
from typing import Any


def parse_record(line: str | bytes) -> dict[str, Any] | None:
    """The step and the numbers of a line; None if it is no record, such as one that was cut off when a run died."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or found["step"] < 0:
        return None
    return {name: value for name, value in found.items() if value is None or isinstance(value, int | float)}
