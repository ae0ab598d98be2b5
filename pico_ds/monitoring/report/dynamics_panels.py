"""A table and panels of the learning dynamics of a run."""

from collections.abc import Sequence

import numpy as np

from pico_ds.dynamics.snapshot_analysis import Measurement
from pico_ds.monitoring.report.panels import Line, Panel, Section, Table, depth_colours

#: number of steps that fit into the table
_SHOWN_STEPS = 8
#: measures with a logarithmic axis, because their values span orders of magnitude
_LOGARITHMIC = ("condition_number", "displacement")
#: a condition number above this is rounding noise (docs/snapshots.md)
_SINGULAR = 1e6
_UNITS = {"head_entropy": "head entropy [nats]"}


def dynamics_table(measurements: Sequence[Measurement], split: str) -> Table:
    """Return a table of means over all layers with the same name, such as `attention.v_proj` of all blocks.

    Each column is one step. If there are many steps, the table shows an evenly spaced selection.
    """
    steps = sorted({measurement.step for measurement in measurements})
    indices = np.unique(np.linspace(0, len(steps) - 1, _SHOWN_STEPS).round().astype(int))
    shown = [steps[index] for index in indices]
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for measurement in measurements:
        row = values.setdefault((measurement.kind, measurement.measure, _module_name(measurement.layer)), {})
        row.setdefault(measurement.step, []).append(measurement.value)
    kinds = [*dict.fromkeys(kind for kind, _, _ in values)]
    # keep the rows of one kind together, even if some measures begin at a later step
    rows = [
        [*names, *(_cell(names[1], by_step[step]) if step in by_step else "" for step in shown)]
        for names, by_step in sorted(values.items(), key=lambda entry: kinds.index(entry[0][0]))
    ]
    title = f"learning dynamics, {split} rows, means over blocks"
    return Table(title, "", ["kind", "measure", "module", *(f"step {step}" for step in shown)], rows)


def _cell(measure: str, values: list[float]) -> str:
    is_singular = measure == "condition_number" and max(values) > _SINGULAR
    return "singular" if is_singular else f"{np.mean(values):.4g}"


def dynamics_sections(measurements: Sequence[Measurement]) -> list[Section]:
    """Return one section per kind and measure, with one panel per module name and one line per block.

    Attention heads have one panel per block and one line per head.
    """
    sections = []
    for kind, measure in dict.fromkeys((measurement.kind, measurement.measure) for measurement in measurements):
        of_measure = [
            measurement for measurement in measurements if (measurement.kind, measurement.measure) == (kind, measure)
        ]
        by_panel: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for measurement in of_measure:
            lines = by_panel.setdefault(_panel_name(measurement.layer), {})
            lines.setdefault(measurement.layer, []).append((measurement.step, measurement.value))
        log_y = measure in _LOGARITHMIC and all(measurement.value > 0 for measurement in of_measure)
        panels = [
            Panel(
                name,
                "outer step",
                _UNITS.get(measure, measure.replace("_", " ")),
                [
                    _line(layer, colour, points)
                    for (layer, points), colour in zip(lines.items(), depth_colours(len(lines)), strict=True)
                ],
                compares=len(lines) <= 12,
                log_y=log_y,
            )
            for name, lines in by_panel.items()
        ]
        note = "One line per block or head, from the first (dark) to the last (bright)."
        sections.append(Section(f"{kind}: {measure.replace('_', ' ')}", note, panels))
    return sections


def _line(layer: str, colour: str, points: Sequence[tuple[int, float]]) -> Line:
    steps, values = zip(*points, strict=True)
    return Line(layer, colour, np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64))


def _panel_name(layer: str) -> str:
    name = _module_name(layer)
    return f"heads of {layer.partition('.heads')[0]}" if name == "heads" else name


def _module_name(layer: str) -> str:
    """Return the name of the module without the number of its block; "heads" for any attention head."""
    if not layer.startswith("layers."):
        return layer
    name = layer.split(".", 2)[2]
    return "heads" if name.startswith("heads.") else name
