"""Few-shot results of runs, grouped by the tasks that they were evaluated on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pico_ds.evaluation.few_shot_tables import shown_steps
from pico_ds.monitoring.report.run_records import Group, Record


@dataclass(frozen=True)
class Column:
    """Accuracies of one experiment on some tasks, as means over the seeds for each task.

    Attributes:
        by_method: name of the baseline -> accuracy of every task.
        by_step: accuracy of every task after 0, 1, ... adaptation steps of the learner.
        is_cut: whether tasks or steps were dropped because not all seeds have them.
    """

    by_method: dict[str, list[float]]
    by_step: list[list[float]]
    is_cut: bool

    @property
    def methods(self) -> dict[str, list[float]]:
        """Accuracies of the baselines, and of the learner after some of its adaptation steps, by name."""
        shown = shown_steps(len(self.by_step) - 1)
        return {**self.by_method, **{f"adapted, {step} steps": self.by_step[step] for step in shown}}

    @classmethod
    def over_seeds(cls, entries: Sequence[Mapping[str, Any]]) -> "Column":
        """Return the means over seeds, for the tasks and steps that every seed has.

        Task i is the same task for all seeds, so each mean is over equal tasks.
        """
        steps = {len(entry["by_step"]) for entry in entries}
        tasks = {len(entry["by_step"][0]) for entry in entries}
        methods = [name for name in entries[0]["by_method"] if all(name in entry["by_method"] for entry in entries)]

        def mean(rows: Sequence[Sequence[float]]) -> list[float]:
            return np.mean([row[: min(tasks)] for row in rows], axis=0).tolist()

        return cls(
            {name: mean([entry["by_method"][name] for entry in entries]) for name in methods},
            [mean([entry["by_step"][step] for entry in entries]) for step in range(min(steps))],
            is_cut=len(steps) > 1 or len(tasks) > 1,
        )


@dataclass(frozen=True)
class TaskResults:
    """Results of all experiments that were evaluated on the same tasks.

    Attributes:
        title: shape and words of the tasks.
        columns: results by name of the experiment. The name includes the readout and the overrides of the evaluation
            if they differ from the run.
    """

    title: str
    columns: dict[str, Column]


@dataclass
class _TaskColumns:
    title: str
    #: column name -> the group, and run path -> entry, so that each run counts once
    columns: dict[str, tuple[Group, dict[str, Mapping[str, Any]]]] = field(default_factory=dict)


def results_by_tasks(groups: Sequence[Group]) -> list[TaskResults]:
    """Return the results of all runs, grouped by tasks.

    Tasks differ if their key, word split, shape or kind of documents differs.
    """
    by_tasks: dict[tuple[Any, ...], _TaskColumns] = {}
    for group, record, content, entry in _entries(groups):
        key = (content.get("task_key"), *_tasks_of(content, entry))
        same_tasks = by_tasks.setdefault(key, _TaskColumns(_title(content, entry)))
        _, seeds = same_tasks.columns.setdefault(group.name + _variant(content, record), (group, {}))
        seeds[str(record.path)] = entry
    titles = [results.title for results in by_tasks.values()]
    return [
        TaskResults(
            results.title if titles.count(results.title) == 1 else f"{results.title}, tasks {number}",
            {
                _with_count(name, group, len(seeds)): Column.over_seeds([*seeds.values()])
                for name, (group, seeds) in results.columns.items()
            },
        )
        for number, results in enumerate(by_tasks.values(), start=1)
    ]


def _entries(groups: Sequence[Group]) -> Iterator[tuple[Group, Record, Mapping[str, Any], Mapping[str, Any]]]:
    for group in groups:
        for record in group.records:
            # evaluations with the settings of the run come first
            for content in sorted(record.few_shot, key=lambda content: _variant(content, record)):
                for entry in content["settings"]:
                    if entry["by_step"]:
                        yield group, record, content, entry


def _tasks_of(content: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return content.get("word_split"), *(entry[name] for name in ("n_way", "k_shot", "q_query", "documents"))


def _title(content: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    split, n_way, k_shot, q_query, documents = _tasks_of(content, entry)
    parts = [f"{n_way}-way {k_shot}-shot", f"{q_query} queries"]
    parts += [] if documents == "any" else [f"{documents} documents"]
    return ", ".join([*parts, *([] if split is None else [f"{split} words"])])


def _variant(content: Mapping[str, Any], record: Record) -> str:
    """Return the settings of the evaluation that differ from the run, as a suffix of the column name."""
    readout = content.get("readout", record.config.smlmt.readout)
    parts = [*([] if readout == record.config.smlmt.readout else [readout]), *sorted(content.get("overrides", ()))]
    return "".join(f", {part}" for part in parts)


def _with_count(name: str, group: Group, n_seeds: int) -> str:
    return name if n_seeds == len(group.records) else f"{name} ({n_seeds} of {len(group.records)} seeds)"
