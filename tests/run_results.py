"""Reads the metrics and weights of finished runs, and compares them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

#: a configuration that trains in about a second on one core
TINY = "tests/end_to_end/tiny.yaml"
#: metrics that depend on the machine
TIMINGS = {"seconds_per_step", "tokens_per_second", "tasks_per_second", "peak_memory_gib", "data_wait_fraction"}


def metrics_of(run_directory: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_directory / "logs" / "metrics.jsonl").read_text().splitlines()]


def deterministic_metrics_of(run_directory: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl without the fields that depend on the machine."""
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in metrics_of(run_directory)]


def weights_of(run_directory: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return load_file(run_directory / f"checkpoints/step_{step}/model.safetensors")


def assert_bit_identical(actual: Path, expected: Path, step: int) -> None:
    """Raise unless two runs have the same metrics in all lines and the same weights at a step."""
    assert deterministic_metrics_of(actual) == deterministic_metrics_of(expected)
    actual_weights, expected_weights = weights_of(actual, step), weights_of(expected, step)
    assert actual_weights.keys() == expected_weights.keys()
    assert all(torch.equal(actual_weights[name], expected_weights[name]) for name in expected_weights)
