"""Reads the files of runs, and groups runs that differ only in their seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.config import ConfigError, RunConfig, load_config
from pico_ds.dynamics.snapshot_reader import RunSnapshots
from pico_ds.runs.metrics_file import parse_record

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """The files of one run.

    Attributes:
        metrics: the lines of metrics.jsonl, followed by one line per snapshot with scalars by layer.
        few_shot: the few-shot results that `scripts/evaluate.py` wrote for words of the corpus at the newest evaluated
            step, one element per file.
        damaged_lines: number of lines in metrics.jsonl that are not records.
    """

    path: Path
    config: RunConfig
    metrics: list[dict[str, Any]]
    few_shot: list[dict[str, Any]]
    damaged_lines: int = 0

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read the directory of a run.

        Raises:
            ConfigError: `path` is not the directory of a run, or a file in it cannot be read.
        """
        for needed in ("training_config.yaml", "logs/metrics.jsonl"):
            if not (path / needed).exists():
                raise ConfigError(f"{path} has no {needed}; give the directory of a run")
        try:
            lines = (path / "logs" / "metrics.jsonl").read_text(errors="replace").splitlines()
            metrics = [record for line in lines if (record := parse_record(line)) is not None]
            grids = [*map(_read_json, sorted((path / "eval_results").glob("few_shot*_step_*.json")))]
        except ValueError as error:
            raise ConfigError(f"{path}: a file of the run is damaged: {error}") from error
        grids = [content for content in grids if "data" not in content]
        newest = max((content["step"] for content in grids), default=0)
        few_shot = [content for content in grids if content["step"] == newest]
        config = load_config(path / "training_config.yaml")
        lost = len(lines) - len(metrics)
        return cls(path, config, metrics + _snapshot_lines(path, metrics), few_shot, lost)

    @property
    def name(self) -> str:
        """Name of the run directory, after the path is resolved."""
        return self.path.resolve().name

    @cached_property
    def experiment(self) -> str:
        """A text that is equal for runs that differ only in their seed."""
        content = self.config.model_dump(exclude={"checkpointing", "monitoring"})
        # with another seed, the same number of tokens may take a different number of steps
        for key in ("seed", "max_steps"):
            content["training"].pop(key)
        return json.dumps(content, sort_keys=True)

    def maximum(self, name: str) -> int:
        """Return the largest value of a counter, or 0 if there is none.

        The search covers all lines, because not every line has the counter, and lines of snapshots come last.
        """
        return int(max((line.get(name, 0) for line in self.metrics), default=0))

    def series(self, name: str) -> tuple[Floats, Floats]:
        """Return the tokens so far and the values of a metric, both [lines that have the metric]."""
        tokens, found, values = 0.0, [], []
        for line in self.metrics:
            tokens = line.get("tokens", tokens)
            if line.get(name) is not None:
                found.append(tokens)
                values.append(line[name])
        return np.array(found, dtype=np.float64), np.array(values, dtype=np.float64)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the metrics that begin with a prefix, in order of appearance."""
        return [*dict.fromkeys(name for line in self.metrics for name in line if name.startswith(prefix))]


def _snapshot_lines(run: Path, metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per snapshot: the effective rank and the displacement of every layer.

    The displacement is the one after the last inner step, averaged over held-out tasks.
    """
    if not any((run / "checkpoints").glob("step_*/learning_dynamics")):
        return []
    snapshots, lines = RunSnapshots.of(run), []
    tokens = {0: 0, **{line["step"]: line["tokens"] for line in metrics if "tokens" in line}}
    for step in snapshots.by_step:
        # a snapshot between two lines gets the tokens of the line before it
        line: dict[str, Any] = {"step": step, "tokens": tokens[max(known for known in tokens if known <= step)]}
        for name, values in snapshots.meta(step).items():
            record, _, layer = name.partition(".")
            if record == "effective_rank":
                line[f"layers/effective_rank/{layer}"] = float(values)
            elif record == "displacement":
                line[f"layers/held_out_displacement/{layer}"] = float(values[:, -1].mean())
        lines.append(line)
    return lines


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, one per seed."""

    name: str
    records: list[Record]

    def series(self, name: str, points: int = 200) -> tuple[Floats, Floats, Floats, Floats] | None:
        """Return the tokens, and the mean, minimum and maximum of a metric over the seeds; None if no run has it.

        Several runs are interpolated linearly to equal numbers of tokens, over the range that all of them cover.

        Args:
            points: number of interpolated points.
        """
        found = [series for record in self.records if len((series := record.series(name))[0])]
        if not found:
            return None
        if len(found) == 1:
            tokens, values = found[0]
            return tokens, values, values, values
        first, last = max(tokens[0] for tokens, _ in found), min(tokens[-1] for tokens, _ in found)
        grid = np.linspace(first, last, points) if last > first else np.array([last])
        values = np.stack([np.interp(grid, tokens, each) for tokens, each in found])
        return grid, values.mean(0), values.min(0), values.max(0)


def group_by_experiment(records: Sequence[Record]) -> list[Group]:
    """Group the runs that differ only in their seed. A group is named by the common beginning of its runs' names.

    If two runs of an experiment have the same seed, the experiment is split by parent directory and run name without
    the number at the end. If a part still has a seed twice, each of its runs becomes a separate group. A mean over
    seeds therefore never counts a seed twice.

    Raises:
        ConfigError: a run is given twice.
    """
    places: dict[Path, Record] = {}
    for record in records:
        if (other := places.setdefault(record.path.resolve(), record)) is not record:
            raise ConfigError(f"{record.path} is given twice (as {other.path}); give it once")
    experiments: dict[str, list[Record]] = {}
    for record in records:
        experiments.setdefault(record.experiment, []).append(record)
    groups = [members for experiment in experiments.values() for members in _split_repeated_seeds(experiment)]
    return [Group(name, members) for name, members in zip(_names_of(groups), groups, strict=True)]


def _split_repeated_seeds(records: list[Record]) -> list[list[Record]]:
    if _has_each_seed_once(records):
        return [records]
    by_stem: dict[tuple[Path, str], list[Record]] = {}
    for record in records:
        by_stem.setdefault((record.path.resolve().parent, _stem(record.name)), []).append(record)
    found: list[list[Record]] = []
    for members in by_stem.values():
        found += [members] if _has_each_seed_once(members) else [[record] for record in members]
    return found


def _has_each_seed_once(records: Sequence[Record]) -> bool:
    return len({record.config.training.seed for record in records}) == len(records)


def _names_of(groups: Sequence[Sequence[Record]]) -> list[str]:
    """Return a unique name for each group, because the file names of figures contain the name of the group."""
    short_names = [_common_name([record.name for record in members]) for members in groups]
    long_names = [
        f"{members[0].path.resolve().parent.name}-{name}" for name, members in zip(short_names, groups, strict=True)
    ]
    names: list[str] = []
    for name, other in zip(short_names, long_names, strict=True):
        base_name = name if short_names.count(name) == 1 else other
        number, unused_name = 2, base_name
        while unused_name in names:
            unused_name, number = f"{base_name}-{number}", number + 1
        names.append(unused_name)
    return names


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    shared = 0
    while all(len(name) > shared and name[shared] == names[0][shared] for name in names):
        shared += 1
    return _stem(names[0][:shared]) or names[0]


def _stem(name: str) -> str:
    return name.rstrip("-_0123456789.")
