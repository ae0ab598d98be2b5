"""Panels with the curves of runs, by tokens of training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pico_ds.evaluation.few_shot import Estimate
from pico_ds.monitoring.report.few_shot_results import results_by_tasks
from pico_ds.monitoring.report.panels import Line, Panel, Section, depth_colours, group_colours
from pico_ds.monitoring.report.run_records import Group

#: metric, label of the y axis, caption
_TRAINING = (
    ("ar/loss", "loss [nats/token]", "Next-token loss of autoregressive steps"),
    ("meta/query_accuracy", "accuracy [%]", "Query accuracy of meta steps, after adaptation"),
    ("meta/query_loss", "loss [nats]", "Query loss of meta steps, after adaptation"),
    ("meta/relative_displacement", "‖adapted − initial‖ / ‖initial‖", "How far the inner loop moves the weights"),
)
#: metric under layers/, caption
_LAYERS = (
    ("displacement", "distance that the inner loop moves each layer"),
    ("weight_norm", "norm of each layer's weights"),
    ("effective_rank", "proportional effective rank of each layer's weights, from snapshots"),
    ("held_out_displacement", "distance that adaptation to held-out tasks moves each layer, from snapshots"),
)
_OVER_SEEDS = (
    "Runs are compared at equal numbers of tokens. Lines are means over seeds; bands are the range over seeds."
)


def run_sections(groups: Sequence[Group]) -> list[Section]:
    """Return the sections of the report for which the runs have data."""
    curves = _Curves(groups)
    sections = [
        Section("Training", _OVER_SEEDS, curves.panels(_TRAINING)),
        Section("Evaluation during training", _OVER_SEEDS, curves.evaluations()),
        Section(
            "Adaptation to held-out words",
            "Accuracy after each inner step. Bands are 95 % confidence intervals over tasks.",
            _adaptation(groups),
        ),
        Section(
            "Layers",
            "One line per layer, from the first (dark) to the last (bright). Point at a line to see its name.",
            curves.layers(),
        ),
    ]
    return [section for section in sections if section.panels]


@dataclass(frozen=True)
class _Curves:
    groups: Sequence[Group]

    @cached_property
    def colours(self) -> dict[str, str]:
        return group_colours([group.name for group in self.groups])

    @cached_property
    def x_range(self) -> tuple[float, float]:
        """The range of tokens that all panels share."""
        return 0.0, max(float(record.maximum("tokens")) for group in self.groups for record in group.records)

    def panels(self, metrics: Sequence[tuple[str, str, str]]) -> list[Panel]:
        """Return one panel for each (metric, label of the y axis, caption) that a run has."""
        found = []
        for metric, label, caption in metrics:
            scale = 100 if "accuracy" in metric else 1
            lines = [
                Line(_label(group), self.colours[group.name], tokens, scale * mean, scale * low, scale * high)
                for group in self.groups
                if (series := group.series(metric)) is not None
                for tokens, mean, low, high in [series]
            ]
            if lines:
                found.append(Panel(caption, "tokens", label, lines, x_range=self.x_range))
        return found

    def evaluations(self) -> list[Panel]:
        few_shot = []
        for name in sorted(
            {name for group in self.groups for record in group.records for name in record.names("eval/few_shot/")}
        ):
            _, _, split, readout, measure = name.split("/")
            if measure == "accuracy_after":
                caption = f"Few-shot accuracy after adaptation, {split} words, readout {readout}"
                few_shot.append((name, "accuracy [%]", caption))
        loss = ("eval/validation_loss", "loss [nats/token]", "Validation loss, held-out documents")
        return [*self.panels([loss]), *_share_y(self.panels(few_shot))]

    def layers(self) -> list[Panel]:
        found = []
        for kind, caption in _LAYERS:
            panels = []
            for group in self.groups:
                names = group.records[0].names(f"layers/{kind}/")
                colours = depth_colours(len(names))
                lines = [
                    Line(name.rsplit("/", 1)[-1], colour, series[0], series[1])
                    for name, colour in zip(names, colours, strict=True)
                    if (series := group.series(name)) is not None
                ]
                if lines:
                    title = f"{group.name}: {caption}"
                    y_label = kind.replace("_", " ")
                    panels.append(Panel(title, "tokens", y_label, lines, compares=False, x_range=self.x_range))
            found += _share_y(panels)
        return found


def _adaptation(groups: Sequence[Group]) -> list[Panel]:
    """Return one panel for each shape of task that the runs were evaluated on."""
    results = results_by_tasks(groups)
    names = [*(group.name for group in groups), *(name for tasks in results for name in tasks.columns)]
    colours = group_colours([*dict.fromkeys(names)])
    panels = []
    for tasks in results:
        lines = []
        for name, column in tasks.columns.items():
            estimates = [Estimate.of(values) for values in column.by_step]
            mean = 100 * np.array([estimate.mean for estimate in estimates])
            half = 100 * np.array([estimate.half_width for estimate in estimates])
            band = (mean - half, mean + half) if np.isfinite(half).all() else (None, None)
            lines.append(Line(name, colours[name], np.arange(len(mean), dtype=np.float64), mean, *band))
        panels.append(Panel(tasks.title, "adaptation steps", "accuracy [%]", lines))
    return panels


def _share_y(panels: Sequence[Panel]) -> list[Panel]:
    """Return the panels with one range of the y axis, so that they can be compared side by side."""
    values = [
        bound[np.isfinite(bound)]
        for panel in panels
        for line in panel.lines
        for bound in (line.y, line.low, line.high)
        if bound is not None
    ]
    if not values or not (joined := np.concatenate(values)).size:
        return [*panels]
    margin = 0.05 * (float(joined.max() - joined.min()) or 1.0)
    y_range = (float(joined.min()) - margin, float(joined.max()) + margin)
    return [replace(panel, y_range=y_range) for panel in panels]


def _label(group: Group) -> str:
    count = len(group.records)
    return group.name if count == 1 else f"{group.name} ({count} seeds)"
