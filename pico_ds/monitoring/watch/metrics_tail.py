"""Follows metrics.jsonl while a run writes it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pico_ds.runs.metrics_file import parse_record

#: maximum number of points in a series; at this length, neighbouring points are averaged
_MAX_POINTS = 1024
#: if more than _MAX_BYTES are new, read only a sample of the lines, and the last _TAIL_BYTES completely
_MAX_BYTES, _TAIL_BYTES = 2**23, 2**18
_SAMPLED_LINES = 512


@dataclass
class Series:
    """A metric over the whole run, as a bounded number of means. Each mean covers the same number of lines."""

    values: list[float] = field(default_factory=list)
    _lines_per_point: int = 1
    _pending: list[float] = field(default_factory=list)

    def thin(self, lines_per_point: int) -> None:
        """Set the number of lines per point, because each sampled point stands for this number of lines."""
        self._lines_per_point = max(1, lines_per_point)

    def add(self, value: float) -> None:
        """Add the value of the next line."""
        self._pending.append(value)
        if len(self._pending) < self._lines_per_point:
            return
        self.values.append(sum(self._pending) / len(self._pending))
        self._pending.clear()
        if len(self.values) >= _MAX_POINTS:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.values = [(first + second) / 2 for first, second in pairs]
            self._lines_per_point *= 2


class MetricsTail:
    """Reads the lines added since the last read. It starts over if a resume has removed lines.

    Attributes:
        newest: metric name -> (step, value) of the newest line in which the metric is not null.
        step: step of the newest training line; 0 if there is none.
        line_count: number of records read; lines that are not records, or that sampling skipped, are not counted.
    """

    def __init__(self, path: Path, series_names: tuple[str, ...] = ()) -> None:
        """
        Args:
            series_names: names of the metrics to keep as a `Series`.
        """
        self._path, self._series_names = path, series_names
        self._reset()

    def _reset(self) -> None:
        self._offset, self._inode = 0, -1
        self.newest: dict[str, tuple[int, Any]] = {}
        self.series = {name: Series() for name in self._series_names}
        self.step = self.line_count = 0
        #: time of the last write [s since the epoch]; None before the first line
        self.written_at: float | None = None

    def read(self) -> None:
        """Read the new lines. An incomplete last line is left for the next call."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            self._reset()
            return
        with file:
            # fstat, not stat, because a resume may replace the file at this path
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._reset()
                self._inode = stat.st_ino
            if stat.st_size - self._offset > _MAX_BYTES:
                self._sample(file, stat.st_size - _TAIL_BYTES)
            file.seek(self._offset)
            *lines, _ = file.read().split(b"\n")
            for line in lines:
                self._offset += len(line) + 1
                self._take(line)
        if self.line_count:
            self.written_at = stat.st_mtime

    def _sample(self, file: BinaryIO, end: int) -> None:
        """Start over with a sample of lines, evenly spaced in the file up to the byte offset `end`.

        Reading every line of a run of several weeks would take a minute.
        """
        inode = self._inode
        self._reset()
        self._inode = inode
        length = 0
        for number in range(_SAMPLED_LINES):
            file.seek(end * number // _SAMPLED_LINES)
            file.readline()
            line = file.readline()
            length += len(line)
            self._take(line)
        for series in self.series.values():
            series.thin(end // length)
        file.seek(end)
        file.readline()
        self._offset = file.tell()

    def _take(self, line: bytes) -> None:
        # a line that is not a record was cut off when the run died; the next resume removes it
        if (entry := parse_record(line)) is None:
            return
        self.line_count += 1
        step = entry["step"]
        if "lr" in entry:
            self.step = step
        for name, value in entry.items():
            if value is not None:
                self.newest[name] = (step, value)
        for name, series in self.series.items():
            if entry.get(name) is not None:
                series.add(entry[name])
