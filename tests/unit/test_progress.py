"""Long work shows its progress, and short work shows nothing."""

import io
import sys

import pytest

from pico_ds import progress as module
from pico_ds.progress import progress, redirect_progress, track


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_display", module._Display())
    return clock


def seconds_each(clock: Clock, seconds: float, count: int) -> None:
    for _ in track(range(count), "counting", count):
        clock.now += seconds


def test_short_work_shows_no_progress(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seconds_each(clock, 0.4, 10)
    assert capsys.readouterr().err == ""


def test_long_work_prints_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seconds_each(clock, 1.0, 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "counting: 12% of 40, 5 s, about 35 s left"
    assert lines[-1] == "counting: 88% of 40, 35 s, about 5 s left"
    assert len(lines) == 4


def test_line_shows_the_note_and_the_count_without_a_total(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading") as work:
        clock.now += 6
        work.advance(1234, note="file a")
    assert capsys.readouterr().err == "reading: 1,234 done in 6 s; file a\n"


def test_quiet_ranks_show_nothing_and_a_logger_gets_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    redirect_progress(is_quiet=False, print_line=lines.append)
    seconds_each(clock, 6.0, 1)
    redirect_progress(is_quiet=True)
    seconds_each(clock, 6.0, 1)
    assert lines == ["counting: 100% of 1, 6 s, about 0 s left"]
    assert capsys.readouterr().err == ""


def test_terminal_shows_a_bar_and_removes_it(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("outer", 2) as outer:
        clock.now += 6
        outer.advance()
        seconds_each(clock, 6.0, 3)
    assert "outer" in terminal.getvalue()
    assert "counting" in terminal.getvalue()
    assert module._display._bars is None
