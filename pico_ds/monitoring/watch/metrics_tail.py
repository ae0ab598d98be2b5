"""metrics.jsonl as it grows."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pico_ds.runs.metrics_file import parse_record

#: points of a series that are kept; a longer one is thinned by taking means
_MOST_POINTS = 1024
#: of more than this that is new only a sample is read, and the end of it
_MOST_BYTES, _END_BYTES = 2**23, 2**18
_SAMPLED_LINES = 512


@dataclass
class Series:
    """A metric over the whole run, in a bounded number of means over equally many lines each."""

    values: list[float] = field(default_factory=list)
    _lines_per_point: int = 1
    _pending: list[float] = field(default_factory=list)

    def thin(self, lines_per_point: int) -> None:
        """The points that are there stand for so many lines each, and so shall the next."""
        self._lines_per_point = max(1, lines_per_point)

    def add(self, value: float) -> None:
        """Take the value of one more line."""
        self._pending.append(value)
        if len(self._pending) < self._lines_per_point:
            return
        self.values.append(sum(self._pending) / len(self._pending))
        self._pending.clear()
        if len(self.values) >= _MOST_POINTS:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.values = [(first + second) / 2 for first, second in pairs]
            self._lines_per_point *= 2


class MetricsTail:
    """Reads what was added since the last look; begins anew where a resume has taken lines out.

    Attributes:
        newest: last value of every metric that is not null, with its step.
        step: of the newest line of training; 0 without any.
        line_count: lines that were read; those that are no records, or passed over in a sample, are not counted.
    """

    def __init__(self, path: Path, courses: tuple[str, ...] = ()) -> None:
        """
        Args:
            courses: metrics whose course is kept.
        """
        self._path, self._courses = path, courses
        self._reset()

    def _reset(self) -> None:
        self._offset, self._inode = 0, -1
        self.newest: dict[str, tuple[int, Any]] = {}
        self.series = {name: Series() for name in self._courses}
        self.step = self.line_count = 0
        #: time of the last write [s since the epoch]; None without a line
        self.written_at: float | None = None

    def read(self) -> None:
        """Take in the lines that have come; one that is half written is left for the next time."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            self._reset()
            return
        with file:
            # of the file that is open: a resume puts another in its place
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._reset()
                self._inode = stat.st_ino
            if stat.st_size - self._offset > _MOST_BYTES:
                self._sample(file, stat.st_size - _END_BYTES)
            file.seek(self._offset)
            *lines, _ = file.read().split(b"\n")
            for line in lines:
                self._offset += len(line) + 1
                self._take(line)
        if self.line_count:
            self.written_at = stat.st_mtime

    def _sample(self, file: BinaryIO, end: int) -> None:
        """Begin anew with lines that lie equally far apart, up to `end`: all of a run of weeks would take a minute."""
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
        # one that is no record was cut off as a run died; its resume takes it out
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
