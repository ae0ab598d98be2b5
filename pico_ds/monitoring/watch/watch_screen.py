"""Displays a run on a terminal."""

import time
from collections.abc import Iterator
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pico_ds.monitoring.watch.run_state import duration, last_log_line
from pico_ds.monitoring.watch.run_view import RunView

_STYLES = {
    **{"running": "bold green", "evaluating": "bold green", "finished": "bold green", "starting": "bold cyan"},
    **{"stopped": "bold yellow", "stalled": "bold red", "silent": "bold red", "failed": "bold red", "died": "bold red"},
}
#: states of a run that has ended. They show neither an ETA nor the last line of train.log
_ENDED_STATES = ("finished", "stopped", "failed", "died")
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
#: interval between checks whether the terminal was resized [s]
_RESIZE_SECONDS = 0.2


class Sparkline:
    """A chart of a metric in one line of text, which fills the available width."""

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline(self._values, options.max_width, options.ascii_only), style="cyan", no_wrap=True)


def sparkline(values: list[float], width: int, ascii_only: bool = False) -> str:
    """Return values as a line of blocks with eight heights, scaled from the minimum to the maximum.

    If there are more values than columns, each block shows the mean of several values.
    """
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    bounds = [len(values) * column // count for column in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(bounds)]
    blocks, lowest, highest = _ASCII_BLOCKS if ascii_only else _BLOCKS, min(means), max(means)
    scale = (len(blocks) - 1) / (highest - lowest) if highest > lowest else 0.0
    return "".join(blocks[round((mean - lowest) * scale)] for mean in means)


def watch(view: RunView, console: Console, every_seconds: float, once: bool) -> None:
    """Show a run until Ctrl-C. Print it once if `once` is true or if the output is not a capable terminal.

    Raises:
        ConfigError: the run directory no longer exists.
    """
    if once or not console.is_terminal or console.is_dumb_terminal:
        console.print(frame(view))
        return
    try:
        with Live(frame(view), console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(frame(view), refresh=True)
                _wait(console, every_seconds)
                view.refresh()
    except KeyboardInterrupt:
        # leaving the live view restores the previous screen, so print the last state to keep it visible
        console.print(frame(view))


def _wait(console: Console, seconds: float) -> None:
    """Wait for `seconds`, or until the terminal is resized."""
    size, end = console.size, time.monotonic() + seconds
    while time.monotonic() < end and console.size == size:
        time.sleep(min(_RESIZE_SECONDS, seconds))


def frame(view: RunView) -> RenderableType:
    """Return the panel that shows the current state of a run."""
    parts: list[RenderableType] = [_headline(view), *_progress(view)]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    for name, content in _rows(view):
        table.add_row(name, content)
    parts += [Text(), table]
    if view.failure:
        parts += [Text(), Text(view.failure.rstrip(), style="red")]
    # the name comes first because a narrow terminal cuts off the end
    title = Text.assemble((view.run.path.name, "bold"), f" in {view.run.path.parent}")
    return Panel(Group(*parts), title=title, title_align="left")


def _headline(view: RunView) -> Text:
    run_state = view.run_state
    return Text.assemble((run_state.state, _STYLES[run_state.state]), "  ", run_state.reason)


def _progress(view: RunView) -> Iterator[RenderableType]:
    if view.config is None:
        return
    step, total = view.tail.step, view.config.training.max_steps
    text = Text(f"step {step:,} of {total:,}  {100 * step / total:.1f} %")
    if view.seconds_left and view.run_state.state not in _ENDED_STATES:
        text.append(f"  ETA {duration(view.seconds_left)}, evaluations and saves not counted")
    yield text
    yield ProgressBar(total=total, completed=min(step, total))


def _rows(view: RunView) -> Iterator[tuple[str, RenderableType]]:
    for name, label in (("ar/loss", "AR loss"), ("meta/query_loss", "query loss")):
        if (value := view.newest(name)) is not None:
            yield label, _value_with_sparkline(f"{value:.3f}", view.tail.series[name].values)
    if (value := view.newest("meta/query_accuracy")) is not None:
        yield (
            "query accuracy",
            _value_with_sparkline(f"{100 * value:.1f} %", view.tail.series["meta/query_accuracy"].values),
        )
    for part in ("support", "query"):
        if changes := [*_changes(view, part)]:
            yield f"{part} adapted", ", ".join(changes)
    yield from _evaluation_rows(view)
    if speed := [*_speed(view)]:
        yield "throughput", ", ".join(speed)
    if load := [*_load(view)]:
        yield "load", ", ".join(load)
    if (skipped := view.newest("skipped_steps")) is not None:
        yield "skipped steps", Text(str(skipped), style="bold red" if skipped else "")
    if view.environment:
        yield "ranks", f"{view.environment['world_size']} on {view.environment['device']}"
    checkpoint = view.checkpoint
    yield "checkpoint", "none yet" if checkpoint is None else f"step_{checkpoint[0]}, {duration(checkpoint[1])} ago"
    written_at = view.tail.written_at
    yield "last metrics", "none yet" if written_at is None else f"{duration(time.time() - written_at)} ago"
    if view.run_state.state not in _ENDED_STATES and (line := last_log_line(view.run)):
        yield "last log line", Text(line, no_wrap=True, overflow="ellipsis")


def _value_with_sparkline(value: str, series: list[float]) -> Table:
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(width=8, justify="right", no_wrap=True)
    row.add_column(ratio=1, no_wrap=True)
    row.add_row(value, Sparkline(series))
    return row


def _changes(view: RunView, part: str) -> Iterator[str]:
    """Yield loss and accuracy before and after adaptation, of the first meta step of the newest log window."""
    for metric, scale, form in (("loss", 1, "{:.3f}"), ("accuracy", 100, "{:.1f} %")):
        values = [view.newest(f"meta/{part}_{metric}_{moment}") for moment in ("before", "after")]
        if None not in values:
            yield f"{metric} " + " -> ".join(form.format(scale * value) for value in values if value is not None)


def _evaluation_rows(view: RunView) -> Iterator[tuple[str, RenderableType]]:
    """Yield the first evaluation, usually of the untrained model, and the three newest ones."""
    steps = sorted(view.evaluations)
    for number, step in enumerate(dict.fromkeys([*steps[:1], *steps[-3:]])):
        found, parts = view.evaluations[step], []
        if found.get("validation_loss") is not None:
            parts.append(f"val. loss {found['validation_loss']:.3f}")
        for readout, moments in found.get("few_shot_summary", {}).items():
            before, after = (_percent(moment["mean"], moment["half_width"]) for moment in (moments[0], moments[-1]))
            parts.append(f"{readout} {before} -> {after} %")
        yield "evaluated" if number == 0 else "", f"step {step}: {', '.join(parts)}"


def _percent(mean: float, half_width: float | None) -> str:
    # a single task has no confidence interval
    return f"{100 * mean:.1f}" + ("" if half_width is None else f" ± {100 * half_width:.1f}")


def _speed(view: RunView) -> Iterator[str]:
    for name, form in (
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("tasks_per_second", "{:,.1f} tasks/s"),
        ("seconds_per_step", "{:.3g} s per step"),
    ):
        if (value := view.newest(name)) is not None:
            yield form.format(value)
    if (utilization := view.newest("model_flops_utilization")) is not None:
        yield f"MFU {100 * utilization:.1f} %"


def _load(view: RunView) -> Iterator[str]:
    if (waited := view.newest("data_wait_fraction")) is not None:
        yield f"data wait {100 * waited:.1f} % of the time"
    if (peak := view.newest("peak_memory_gib")) is not None:
        yield f"peak memory {peak:.2f} GiB (rank 0)"
