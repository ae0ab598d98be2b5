"""How far work has come that takes more than a few seconds: a bar on a terminal, plain lines elsewhere.

Work that is done sooner shows nothing.
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

#: nothing is shown before this time [s]
_SILENT_SECONDS = 5.0
#: between two lines, and between two moves of a bar [s]
_LINE_SECONDS, _BAR_SECONDS = 10.0, 0.2
_LEAST_SHARE = 0.01


class Work:
    """Something that is under way.

    Attributes:
        done: parts that are done.
    """

    def __init__(self, what: str, total: float | None) -> None:
        self.what, self.total, self.done, self.note = what, total, 0.0, ""
        self.started = time.monotonic()
        self._shown = self.started
        self._is_shown = False
        self.bar: TaskID | None = None

    def advance(self, count: float = 1, note: str = "") -> None:
        """Some parts more are done; any thread may say so.

        Args:
            note: what stands behind the numbers from now on.
        """
        self.done += count
        self.note = note or self.note
        now = time.monotonic()
        pause = _SILENT_SECONDS if not self._is_shown else _display.pause_seconds
        if now - self._shown >= pause:
            self._shown, self._is_shown = now, True
            _display.show(self)

    def line(self) -> str:
        """How far it has come, in words."""
        seconds = time.monotonic() - self.started
        if not self.total:
            return f"{self.what}: {self.done:,.0f} done in {seconds:.0f} s{self.note and '; ' + self.note}"
        share = min(1.0, self.done / self.total)
        # an estimate from less is no better than none
        left = f", about {seconds * (1 - share) / share:.0f} s left" if share >= _LEAST_SHARE else ""
        return f"{self.what}: {share:.0%} of {self.total:,.0f}, {seconds:.0f} s{left}{self.note and '; ' + self.note}"


class _Display:
    """Where progress of this process is shown."""

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
                work.bar = self._bars.add_task(work.what, total=work.total)
            described = f"{work.what}{work.note and '; ' + work.note}"
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
        is_quiet: show nothing, as on all ranks but the first.
        print_line: gets plain lines, such as a logger; else a terminal gets a bar, and another output plain lines.
    """
    _display.redirect(is_quiet, print_line)


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Work]:
    """Show how far a block has come, by its calls of `Work.advance`.

    Args:
        what: is done, such as "reading sentences".
        total: number of parts; None if nobody knows.
    """
    work = Work(what, total)
    try:
        yield work
    finally:
        _display.close(work)


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, one part of the work each; arguments as of `progress`."""
    with progress(what, total) as work:
        for item in items:
            yield item
            work.advance()
