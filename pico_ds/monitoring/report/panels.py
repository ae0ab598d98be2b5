"""Interactive panels. Each panel is a small figure with a caption."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import numpy as np
from plotly import graph_objects as go
from plotly.colors import sample_colorscale

from pico_ds.monitoring.report.run_records import Floats

#: line colours of experiments: the palette of Okabe and Ito, which colour-blind readers can tell apart.
#: Their black is a grey here, because the page has a dark mode.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
#: a longer line is averaged over bins, which bounds the size of the page
_MAX_POINTS = 500
#: points of a longer line have no markers
_MAX_MARKERS = 30


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        x, y: the points, both [points].
        low, high: bounds of a band around the line, both [points].
    """

    name: str
    colour: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Panel:
    """One small figure.

    Attributes:
        compares: whether the hover box lists the values of all lines at one x. False suits panels with many lines.
        y_range: range of the y axis, which panels side by side share; None fits the lines.
    """

    caption: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    compares: bool = True
    log_y: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None

    def figure(self) -> go.Figure:
        """Return the panel as a Plotly figure."""
        figure = go.Figure()
        for line in map(_thin, self.lines):
            name = html.escape(line.name)
            mode = "lines+markers" if len(line.x) <= _MAX_MARKERS else "lines"
            if line.low is not None and line.high is not None and not np.array_equal(line.low, line.high):
                figure.add_scatter(
                    x=np.concatenate([line.x, line.x[::-1]]),
                    y=np.concatenate([line.high, line.low[::-1]]),
                    fill="toself",
                    fillcolor=line.colour,
                    opacity=0.2,
                    line_width=0,
                    hoverinfo="skip",
                )
            figure.add_scatter(x=line.x, y=line.y, name=name, mode=mode, line={"color": line.colour, "width": 1.6})
        figure.update_layout(
            hovermode="x unified" if self.compares else "closest",
            showlegend=False,
            margin={"l": 56, "r": 12, "t": 8, "b": 40},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            font={"family": "system-ui, sans-serif", "size": 12},
            hoverlabel={"namelength": -1},
            modebar={"orientation": "v", "bgcolor": "rgba(0,0,0,0)"},
        )
        figure.update_xaxes(title=html.escape(self.x_label), range=self.x_range, zeroline=False, exponentformat="SI")
        figure.update_yaxes(
            title=html.escape(self.y_label),
            range=self.y_range,
            type="log" if self.log_y else "linear",
            zeroline=False,
            hoverformat=".4g",
        )
        return figure


@dataclass(frozen=True)
class Table:
    """A table of a page. `strong` are the indices of the rows in bold."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """Panels of a page that belong together."""

    title: str
    note: str
    panels: Sequence[Panel] = field(default_factory=list)


def group_colours(names: Sequence[str]) -> dict[str, str]:
    """Return a line colour for each name."""
    return dict(zip(names, islice(cycle(_COLOURS), len(names)), strict=True))


def depth_colours(count: int) -> list[str]:
    """Return colours from dark to bright, for the layers of a model from its first to its last."""
    return sample_colorscale("Viridis", list(np.linspace(0, 0.9, count)))


def _thin(line: Line) -> Line:
    """Return the line with at most `_MAX_POINTS` points, each the mean of a bin. A band keeps its extremes."""
    if len(line.x) <= _MAX_POINTS:
        return line
    starts = np.linspace(0, len(line.x), _MAX_POINTS, endpoint=False).astype(int)
    counts = np.diff([*starts, len(line.x)])
    low, high = (
        None if bound is None else reduce(bound, starts)
        for bound, reduce in ((line.low, np.minimum.reduceat), (line.high, np.maximum.reduceat))
    )
    x, y = (np.add.reduceat(values, starts) / counts for values in (line.x, line.y))
    return Line(line.name, line.colour, x, y, low, high)
