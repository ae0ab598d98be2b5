"""Tables of the report that compares runs."""

from collections.abc import Sequence

import numpy as np

from pico_ds.evaluation.few_shot import Estimate
from pico_ds.monitoring.report.few_shot_results import results_by_tasks
from pico_ds.monitoring.report.panels import Table
from pico_ds.monitoring.report.run_records import Group

_RUN_COLUMNS = (
    "experiment",
    "seeds",
    "learner",
    "head",
    "inner steps",
    "outer steps",
    "tokens",
    "validation loss",
)


def runs_table(groups: Sequence[Group]) -> Table:
    """Return a table with a row per experiment."""
    return Table("Runs", "", _RUN_COLUMNS, [_run_row(group) for group in groups])


def _run_row(group: Group) -> list[str]:
    config = group.records[0].config
    seeds = sorted(record.config.training.seed for record in group.records)
    tokens = [record.maximum("tokens") for record in group.records]
    losses = [values[-1] for record in group.records if len(values := record.series("eval/validation_loss")[1])]
    last = {record.maximum("step") for record in group.records}
    return [
        group.name,
        ", ".join(map(str, seeds)),
        config.meta.learner,
        config.meta.head,
        str(config.meta.inner_steps),
        " / ".join(f"{step:,}" for step in sorted(last)),
        f"{np.mean(tokens):,.0f}",
        f"{np.mean(losses):.3f}" if losses else "",
    ]


def few_shot_tables(groups: Sequence[Group]) -> list[Table]:
    """Return one table per kind of task, with a row per method and a column per experiment.

    Cells of the later experiments also have the paired difference to the first experiment.
    """
    tables = []
    for setting in results_by_tasks(groups):
        names = [*setting.columns]
        means = {name: column.methods for name, column in setting.columns.items()}
        methods = [*dict.fromkeys(method for found in means.values() for method in found)]
        rows = [
            [method, *(_cell(means[name].get(method), means[names[0]].get(method), name == names[0]) for name in names)]
            for method in methods
        ]
        learner_rows = frozenset(index for index, method in enumerate(methods) if method.startswith("adapted"))
        note = "Accuracy [%] with 95 % intervals over tasks, tasks averaged over seeds"
        note += "; the paired difference to the first experiment is in parentheses." if len(names) > 1 else "."
        if cut := [name for name, column in setting.columns.items() if column.is_cut]:
            note += f" Only tasks and steps that all seeds have are shown for {', '.join(cut)}."
        tables.append(Table(f"Few-shot: {setting.title}", note, ["method", *names], rows, learner_rows))
    return tables


def _cell(values: list[float] | None, first: list[float] | None, is_first: bool) -> str:
    if values is None:
        return ""
    text = Estimate.of(values).percent()
    if is_first or first is None or len(first) != len(values) or values == first:
        return text
    return f"{text} ({Estimate.of(np.subtract(values, first)).percent(signed=True)})"
