"""Figures with the curves of runs. Bands show the range over seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pico_ds.evaluation.few_shot import Estimate
from pico_ds.monitoring.report.few_shot_results import judged
from pico_ds.monitoring.report.run_records import Group

#: line colours of the groups: the palette of Okabe and Ito, which colour-blind readers can tell apart, and two more
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
#: width and height of a panel; on a phone the text of a wider panel would be too small to read
_INCHES = (5.5, 3.5)


@dataclass(frozen=True)
class Plot:
    """A figure with its file name and caption."""

    name: str
    caption: str
    figure: Figure


def plots(groups: Sequence[Group]) -> Iterator[Plot]:
    """Yield every figure for which the runs have data."""
    curves = {
        "language_model_loss": (
            "next-token loss [nats per token]",
            "ar/loss",
            "Autoregressive steps: loss in training.",
        ),
        "query_accuracy": (
            "query accuracy [%]",
            "meta/query_accuracy",
            "Meta steps: accuracy of the query set at the adapted weights, training words.",
        ),
        "query_loss": (
            "query loss [nats]",
            "meta/query_loss",
            "Meta steps: loss of the query set at the adapted weights, training words.",
        ),
        "relative_displacement": (
            "norm of (fast - theta) / norm of theta",
            "meta/relative_displacement",
            "How far the inner loop moves the weights.",
        ),
    }
    for name, (label, metric, caption) in curves.items():
        if (figure := _over_tokens(groups, metric, label)) is not None:
            yield Plot(name, caption, figure)
    yield from _evaluations(groups)
    if (figure := _adaptation(groups)) is not None:
        yield Plot("adaptation", "Held-out words: accuracy by adaptation step, 95 % interval over tasks.", figure)
    yield from _layers(groups)


def _over_tokens(groups: Sequence[Group], metric: str, label: str, markers: bool = False) -> Figure | None:
    figure, axes = _new("tokens", label)
    for group, colour in zip(groups, _colours(), strict=False):
        if (found := group.series(metric)) is None:
            continue
        tokens, mean, least, most = found
        scale = 100 if "accuracy" in metric else 1
        axes.plot(tokens, scale * mean, color=colour, label=_label(group), marker="o" if markers else None)
        axes.fill_between(tokens, scale * least, scale * most, color=colour, alpha=0.2, linewidth=0)
    return _finished(figure, axes)


def _evaluations(groups: Sequence[Group]) -> Iterator[Plot]:
    if (
        figure := _over_tokens(groups, "eval/validation_loss", "validation loss [nats per token]", markers=True)
    ) is not None:
        yield Plot("validation_loss", "Held-out documents: next-token loss.", figure)
    names = {name for group in groups for record in group.records for name in record.names("eval/few_shot/")}
    for name in sorted(name for name in names if name.endswith("accuracy_after")):
        _, _, split, readout, _ = name.split("/")
        if (figure := _over_tokens(groups, name, "accuracy [%]", markers=True)) is not None:
            caption = f"Held-out {split} words, readout {readout}: accuracy after adaptation, as training went."
            yield Plot(f"few_shot_{split}_{readout}", caption, figure)


def _adaptation(groups: Sequence[Group]) -> Figure | None:
    """Return a figure with one panel per kind of task, or None if there are no few-shot results.

    The panels are stacked vertically because a page may be as narrow as a phone.
    """
    settings = judged(groups)
    if not settings:
        return None
    width, height = _INCHES
    figure, panels = plt.subplots(
        len(settings), 1, figsize=(width, height * len(settings)), squeeze=False, layout="constrained"
    )
    names = [*(group.name for group in groups), *(name for setting in settings for name in setting.columns)]
    colours = dict(zip(dict.fromkeys(names), _colours(), strict=False))
    for setting, axes in zip(settings, panels.flat, strict=True):
        for name, column in setting.columns.items():
            estimates = [Estimate.of(values) for values in column.by_step]
            mean = 100 * np.array([estimate.mean for estimate in estimates])
            axes.plot(mean, color=colours[name], label=name)
            half = 100 * np.array([estimate.half_width for estimate in estimates])
            if np.isfinite(half).all():
                axes.fill_between(
                    range(len(mean)), mean - half, mean + half, color=colours[name], alpha=0.2, linewidth=0
                )
        axes.set(title=setting.title, xlabel="adaptation steps", ylabel="accuracy [%]")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    return figure


def _layers(groups: Sequence[Group]) -> Iterator[Plot]:
    """Yield figures with one curve per layer, for each experiment that recorded such metrics."""
    kinds = {
        "displacement": "how far the inner loop moves each layer",
        "weight_norm": "norm of the weights of each layer",
        "effective_rank": "proportional effective rank of the weights of each layer, of the snapshots",
        "held_out_displacement": "how far adaptation to held-out tasks moves each layer, of the snapshots",
    }
    for group in groups:
        for kind, caption in kinds.items():
            names = group.records[0].names(f"layers/{kind}/")
            if not names:
                continue
            figure, axes = _new("tokens", kind.replace("_", " "))
            for place, name in enumerate(names):
                found = group.series(name)
                assert found is not None
                shade = plt.get_cmap("viridis")(place / max(1, len(names) - 1))
                axes.plot(found[0], found[1], color=shade, label=name.rsplit("/", 1)[-1], linewidth=1)
            axes.legend(fontsize="x-small", frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
            yield Plot(f"{kind}_{group.name}", f"{group.name}: {caption}.", figure)


def _new(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=_INCHES, layout="constrained")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _finished(figure: Figure, axes: Axes) -> Figure | None:
    if not axes.lines:
        plt.close(figure)
        return None
    axes.legend(fontsize="small", frameon=False)
    return figure


def _label(group: Group) -> str:
    count = len(group.records)
    return group.name if count == 1 else f"{group.name} ({count} seeds)"


def _colours() -> Iterator[str]:
    while True:
        yield from _COLOURS
