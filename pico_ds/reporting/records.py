"""What runs have written, and which of them are seeds of one experiment."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.config import ConfigError, RunConfig, load_config
from pico_ds.dynamics.reading import RunSnapshots

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        metrics: lines of metrics.jsonl, and after them a line for each snapshot, with scalars by layer.
        few_shot: content of the newest few_shot_step_<N>.json of `scripts/evaluate.py`, if there is one.
    """

    path: Path
    config: RunConfig
    metrics: list[dict[str, Any]]
    few_shot: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read the directory of a run.

        Raises:
            ConfigError: it is none, or a file in it cannot be read.
        """
        for needed in ("training_config.yaml", "logs/metrics.jsonl"):
            if not (path / needed).exists():
                raise ConfigError(f"{path} holds no {needed}; give the directory of a run")
        try:
            lines = (path / "logs" / "metrics.jsonl").read_text().splitlines()
            metrics = [json.loads(line) for line in lines]
            grids = sorted((path / "eval_results").glob("few_shot_step_*.json"), key=_step_of)
            few_shot = json.loads(grids[-1].read_text()) if grids else None
        except ValueError as error:
            raise ConfigError(f"{path}: a file of the run is damaged: {error}") from error
        return cls(path, load_config(path / "training_config.yaml"), metrics + _snapshot_lines(path, metrics), few_shot)

    @cached_property
    def experiment(self) -> str:
        """Equal for runs that differ in their seed alone."""
        content = self.config.model_dump(exclude={"checkpointing", "monitoring"})
        # equal tokens may take another number of steps with another seed
        for of_a_seed in ("seed", "max_steps"):
            content["training"].pop(of_a_seed)
        return json.dumps(content, sort_keys=True)

    def series(self, name: str) -> tuple[Floats, Floats]:
        """Tokens so far and a metric, at the lines that have it."""
        tokens, found, values = 0.0, [], []
        for line in self.metrics:
            tokens = line.get("tokens", tokens)
            if line.get(name) is not None:
                found.append(tokens)
                values.append(line[name])
        return np.array(found, dtype=np.float64), np.array(values, dtype=np.float64)

    def names(self, prefix: str) -> list[str]:
        """Metrics whose name begins with a prefix, in order of appearance."""
        return [*dict.fromkeys(name for line in self.metrics for name in line if name.startswith(prefix))]


def _snapshot_lines(run: Path, metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Effective rank of every layer, and its displacement by the last inner step on held-out tasks."""
    if not any((run / "checkpoints").glob("step_*/learning_dynamics")):
        return []
    snapshots, lines = RunSnapshots.of(run), []
    tokens = {0: 0, **{line["step"]: line["tokens"] for line in metrics if "tokens" in line}}
    for step in snapshots.by_step:
        # those of the last line before, where a snapshot fell between two
        line: dict[str, Any] = {"step": step, "tokens": tokens[max(known for known in tokens if known <= step)]}
        for name, values in snapshots.meta(step).items():
            record, _, layer = name.partition(".")
            if record == "effective_rank":
                line[f"layers/effective_rank/{layer}"] = float(values)
            elif record == "displacement":
                line[f"layers/held_out_displacement/{layer}"] = float(values[:, -1].mean())
        lines.append(line)
    return lines


def _step_of(path: Path) -> int:
    return int(path.stem.rsplit("_", 1)[-1])


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, one for each seed."""

    name: str
    records: list[Record]

    def series(self, name: str, points: int = 200) -> tuple[Floats, Floats, Floats, Floats] | None:
        """Tokens, and the mean, least and most of a metric over the seeds; None where no run has it.

        Runs are compared at equal tokens, by linear interpolation, as far as all of them go.
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
    """Runs that differ in their seed alone, together; a group is named by what its runs' names share."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.experiment, []).append(record)
    return [Group(_common_name([record.path.name for record in members]), members) for members in groups.values()]


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    shared = 0
    while all(len(name) > shared and name[shared] == names[0][shared] for name in names):
        shared += 1
    return names[0][:shared].rstrip("-_0123456789.") or names[0]
