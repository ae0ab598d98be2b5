"""Shows the progress of work that takes more than a few seconds: a bar in a terminal, plain lines elsewhere.

Shorter work shows nothing.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pico_ds.console import make_console

Item = TypeVar("Item")

#: progress is shown only after this time [s]
_SILENT_SECONDS = 5.0
#: time between two lines, and between two updates of a bar [s]
_LINE_SECONDS, _BAR_SECONDS = 10.0, 0.2
#: share of the work below which the remaining time is not estimated
_MIN_SHARE = 0.01


class Work:
    """Work in progress.

    Attributes:
        done: number of completed parts.
    """

    def __init__(self, name: str, total: float | None) -> None:
        self.name, self.total, self.done, self.note = name, total, 0.0, ""
        self.started = time.monotonic()
        self._shown = self.started
        self._is_shown = False
        self.bar: TaskID | None = None

    def advance(self, count: float = 1, note: str = "") -> None:
        """Count `count` more parts as done. Thread-safe.

        Args:
            note: text shown after the numbers from now on.
        """
        self.done += count
        self.note = note or self.note
        now = time.monotonic()
        pause = _SILENT_SECONDS if not self._is_shown else _display.pause_seconds
        if now - self._shown >= pause:
            self._shown, self._is_shown = now, True
            _display.show(self)

    def line(self) -> str:
        """Return the progress as a line of text."""
        seconds = time.monotonic() - self.started
        if not self.total:
            return f"{self.name}: {self.done:,.0f} done in {seconds:.0f} s{self.note and '; ' + self.note}"
        share = min(1.0, self.done / self.total)
        left = f", about {seconds * (1 - share) / share:.0f} s left" if share >= _MIN_SHARE else ""
        return f"{self.name}: {share:.0%} of {self.total:,.0f}, {seconds:.0f} s{left}{self.note and '; ' + self.note}"


class _Display:
    """Shows the progress of all work of this process."""

    def __init__(self) -> None:
        self._print: Callable[[str], None] | None = None
        self._is_quiet = False
        self._bars: Progress | None = None
        self._lock = threading.RLock()

    def redirect(self, is_quiet: bool, print_line: Callable[[str], None] | None) -> None:
        self._is_quiet, self._print = is_quiet, print_line

    @property
    def pause_seconds(self) -> float:
        return _LINE_SECONDS if self._print is not None or not sys.stderr.isatty() else _BAR_SECONDS

    def show(self, work: Work) -> None:
        if self._is_quiet:
            return
        if self._print is not None or not sys.stderr.isatty():
            (self._print or _print_line)(work.line())
            return
        with self._lock:
            if self._bars is None:
                columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
                self._bars = Progress(*columns, console=make_console(stderr=True), transient=True)
                self._bars.start()
            if work.bar is None:
                work.bar = self._bars.add_task(work.name, total=work.total)
            described = f"{work.name}{work.note and '; ' + work.note}"
            self._bars.update(work.bar, completed=work.done, description=described)

    def close(self, work: Work) -> None:
        with self._lock:
            if self._bars is None or work.bar is None:
                return
            self._bars.remove_task(work.bar)
            if not self._bars.task_ids:
                self._bars.stop()
                self._bars = None


_display = _Display()


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def redirect_progress(is_quiet: bool, print_line: Callable[[str], None] | None = None) -> None:
    """Choose where the progress of this process is shown.

    Args:
        is_quiet: show nothing, as on all ranks except the first.
        print_line: receives plain lines, for example a logger. If it is None, stderr shows a bar in a terminal and
            plain lines otherwise.
    """
    _display.redirect(is_quiet, print_line)


@contextmanager
def progress(name: str, total: float | None = None) -> Iterator[Work]:
    """Show the progress of a block, which calls `Work.advance`.

    Args:
        name: name of the work, such as "reading sentences".
        total: number of parts; None if unknown.
    """
    work = Work(name, total)
    try:
        yield work
    finally:
        _display.close(work)


def track(items: Iterable[Item], name: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and count each as one part of the work. For the arguments, see `progress`."""
    with progress(name, total) as work:
        for item in items:
            yield item
            work.advance()
