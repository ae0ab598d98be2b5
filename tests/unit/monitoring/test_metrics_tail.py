"""Each line of metrics.jsonl is read once. A file from which a resume has removed lines is read again."""

import json
from pathlib import Path
from typing import Any

import pytest

from pico_ds.file_writing import replace_text
from pico_ds.monitoring.watch.metrics_tail import MetricsTail, Series
from pico_ds.runs.metrics_file import rewind_metrics


def lines(first: int, last: int, **others: Any) -> str:
    return "".join(
        json.dumps({"step": step, "lr": 0.1, "ar/loss": 10.0 - step, **others}) + "\n"
        for step in range(first, last + 1)
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_missing_file_has_no_metrics(path: Path) -> None:
    tail = MetricsTail(path)
    tail.read()
    assert (tail.step, tail.line_count, tail.written_at) == (0, 0, None)
    append(path, "")
    tail.read()
    assert tail.written_at is None


def test_incomplete_line_is_read_when_it_is_complete(path: Path) -> None:
    tail = MetricsTail(path, ("ar/loss",))
    whole = lines(1, 3)
    append(path, whole[:-9])
    tail.read()
    assert (tail.step, tail.line_count) == (2, 2)
    append(path, whole[-9:])
    tail.read()
    assert (tail.step, tail.line_count) == (3, 3)
    assert tail.series["ar/loss"].values == [9.0, 8.0, 7.0]


def test_lines_are_read_only_once(path: Path) -> None:
    tail = MetricsTail(path)
    append(path, lines(1, 3))
    tail.read()
    # overwrite the lines in place with the same length, so that reading them again would show
    stat = path.stat()
    with path.open("r+") as file:
        file.write("x" * (stat.st_size - 1))
    append(path, lines(4, 4, skipped_steps=2))
    tail.read()
    assert (tail.step, tail.line_count) == (4, 4)
    assert tail.newest["skipped_steps"] == (4, 2)


def test_file_is_read_again_after_a_resume_removes_lines(path: Path) -> None:
    tail = MetricsTail(path, ("ar/loss",))
    append(path, lines(1, 9) + '{"step": 10, "lr"')
    tail.read()
    assert tail.step == 9
    rewind_metrics(path, 6)
    tail.read()
    assert (tail.step, tail.line_count) == (6, 6)
    append(path, lines(7, 12))
    tail.read()
    assert tail.series["ar/loss"].values == [10.0 - step for step in range(1, 13)]
    # a replaced file may be longer than the old one
    replace_text(path, lines(1, 20))
    tail.read()
    assert tail.line_count == 20


def test_damaged_lines_are_skipped(path: Path) -> None:
    append(path, lines(1, 1) + "\0\0\0\n[1]\n{}\n" + lines(2, 2))
    tail = MetricsTail(path)
    tail.read()
    assert (tail.step, tail.line_count) == (2, 2)


def test_newest_value_survives_evaluation_lines_and_nulls(path: Path) -> None:
    append(path, lines(1, 2) + json.dumps({"step": 2, "eval/validation_loss": 3.0}) + "\n")
    append(path, json.dumps({"step": 3, "lr": 0.1, "ar/loss": None}) + "\n")
    tail = MetricsTail(path, ("ar/loss",))
    tail.read()
    assert tail.step == 3
    assert tail.newest["ar/loss"] == (2, 8.0)
    assert tail.newest["eval/validation_loss"] == (2, 3.0)
    assert tail.series["ar/loss"].values == [9.0, 8.0]


def test_series_is_bounded_and_keeps_its_shape() -> None:
    series = Series()
    for number in range(100_000):
        series.add(float(number))
    assert 512 <= len(series.values) <= 1024
    assert series.values == sorted(series.values)
    assert series.values[0] < 200
    assert series.values[-1] > 99_000


def test_long_file_is_sampled(path: Path) -> None:
    """The first read of a long file takes a bounded time, and its series has the shape of the whole file."""
    count = 60_000
    padding = "x" * 150
    with path.open("w") as file:
        for step in range(1, count + 1):
            file.write(f'{{"step": {step}, "lr": 0.1, "ar/loss": {count - step}, "padding": "{padding}"}}\n')
    tail = MetricsTail(path, ("ar/loss",))
    tail.read()
    assert tail.step == count
    assert tail.line_count < 3000
    values = tail.series["ar/loss"].values
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.99 * count
    assert abs(values[len(values) // 2] - count / 2) < 0.05 * count
    before = tail.line_count
    append(path, lines(count + 1, count + 3))
    tail.read()
    assert (tail.step, tail.line_count) == (count + 3, before + 3)
