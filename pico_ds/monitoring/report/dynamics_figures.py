"""Learning dynamics of a run as a table and as figures."""

from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from rich.table import Table

from pico_ds.dynamics.snapshot_analysis import Measurement
from pico_ds.monitoring.report.curve_figures import Plot

#: steps that a table has room for
_SHOWN_STEPS = 8
#: measures of which a course spans powers of ten
_LOGARITHMIC = ("condition_number", "displacement")
#: a condition number above this is rounding noise (docs/snapshots.md)
_SINGULAR = 1e6
_UNITS = {"head_entropy": "head entropy [nats]"}


def dynamics_table(measurements: Sequence[Measurement], split: str) -> Table:
    """Means over the layers of one name (`attention.v_proj` of all blocks): a column for each step, some left out."""
    steps = sorted({one.step for one in measurements})
    places = np.unique(np.linspace(0, len(steps) - 1, _SHOWN_STEPS).round().astype(int))
    shown = [steps[place] for place in places]
    found = Table(title=f"learning dynamics, {split} rows, means over blocks", title_justify="left")
    for column in ("of", "measure", "module"):
        found.add_column(column, no_wrap=True)
    for step in shown:
        found.add_column(f"step {step}", justify="right", no_wrap=True)
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for one in measurements:
        row = values.setdefault((one.kind, one.measure, _name_of(one.layer)), {})
        row.setdefault(one.step, []).append(one.value)
    kinds = [*dict.fromkeys(kind for kind, _, _ in values)]
    # what begins at a later step stands with its kind
    for names, by_step in sorted(values.items(), key=lambda entry: kinds.index(entry[0][0])):
        found.add_row(*names, *(_cell(names[1], by_step[step]) if step in by_step else "" for step in shown))
    return found


def _cell(measure: str, values: list[float]) -> str:
    is_singular = measure == "condition_number" and max(values) > _SINGULAR
    return "singular" if is_singular else f"{np.mean(values):.4g}"


def dynamics_plots(measurements: Sequence[Measurement]) -> list[Plot]:
    """A figure for each kind and measure, a panel for each name of a module, a line for each block.

    Of attention heads a panel for each block, a line for each head.
    """
    found = []
    for kind, measure in dict.fromkeys((one.kind, one.measure) for one in measurements):
        mine = [one for one in measurements if (one.kind, one.measure) == (kind, measure)]
        names = [*dict.fromkeys(_panel_of(one.layer) for one in mine)]
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        figure, panels = plt.subplots(
            rows, columns, figsize=(4.2 * columns, 3.3 * rows), squeeze=False, layout="constrained", sharex=True
        )
        for panel in panels.flat[len(names) :]:
            panel.axis("off")
        for name, panel in zip(names, panels.flat, strict=False):
            layers = [*dict.fromkeys(one.layer for one in mine if _panel_of(one.layer) == name)]
            colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers)))
            for layer, colour in zip(layers, colours, strict=True):
                points = [(one.step, one.value) for one in mine if one.layer == layer]
                panel.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=layer)
            panel.set(title=name, xlabel="outer step", ylabel=_UNITS.get(measure, measure.replace("_", " ")))
            panel.grid(alpha=0.3)
            if len(layers) <= 12:
                panel.legend(fontsize="xx-small", frameon=False)
        if measure in _LOGARITHMIC and all(one.value > 0 for one in mine):
            for panel in panels.flat[: len(names)]:
                panel.set_yscale("log")
        found.append(Plot(f"{kind}_{measure}", f"{kind}: {measure.replace('_', ' ')}", figure))
    return found


def _panel_of(layer: str) -> str:
    name = _name_of(layer)
    return f"heads of {layer.partition('.heads')[0]}" if name == "heads" else name


def _name_of(layer: str) -> str:
    """The module without the number of its block."""
    if not layer.startswith("layers."):
        return layer
    name = layer.split(".", 2)[2]
    return "heads" if name.startswith("heads.") else name
