"""A table and figures of the learning dynamics of a run."""

from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from rich.table import Table

from pico_ds.dynamics.snapshot_analysis import Measurement
from pico_ds.monitoring.report.curve_figures import Plot

#: number of steps that fit into the table
_SHOWN_STEPS = 8
#: measures plotted on a logarithmic axis, because their values span orders of magnitude
_LOGARITHMIC = ("condition_number", "displacement")
#: a condition number above this is rounding noise (docs/snapshots.md)
_SINGULAR = 1e6
_UNITS = {"head_entropy": "head entropy [nats]"}


def dynamics_table(measurements: Sequence[Measurement], split: str) -> Table:
    """Return a table of means over all layers with the same name, such as `attention.v_proj` of all blocks.

    Each column is one step. If there are many steps, the table shows an evenly spaced selection.
    """
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
    # keep the rows of one kind together, even if some measures begin at a later step
    for names, by_step in sorted(values.items(), key=lambda entry: kinds.index(entry[0][0])):
        found.add_row(*names, *(_cell(names[1], by_step[step]) if step in by_step else "" for step in shown))
    return found


def _cell(measure: str, values: list[float]) -> str:
    is_singular = measure == "condition_number" and max(values) > _SINGULAR
    return "singular" if is_singular else f"{np.mean(values):.4g}"


def dynamics_plots(measurements: Sequence[Measurement]) -> list[Plot]:
    """Return one figure per kind and measure, with one panel per module name and one line per block.

    For attention heads there is one panel per block and one line per head.
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
    """Return the name of the module without the number of its block; "heads" for any attention head."""
    if not layer.startswith("layers."):
        return layer
    name = layer.split(".", 2)[2]
    return "heads" if name.startswith("heads.") else name
