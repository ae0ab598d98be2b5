"""Compares two runs on the same evaluation tasks, paired by task."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pico_ds.config import ConfigError
from pico_ds.evaluation.evaluator import EvaluationResult
from pico_ds.evaluation.few_shot import Estimate, FewShotResult


@dataclass(frozen=True)
class Entry:
    """The last evaluation of a run at one readout."""

    name: str
    step: int
    validation_loss: float | None
    few_shot: FewShotResult
    task_key: str


def read_entry(text: str) -> Entry:
    """Read the last evaluation of `RUN` or `RUN:READOUT`. The readout may be omitted if the run has only one.

    Raises:
        ConfigError: the run has no evaluation, no few-shot accuracy, or no results for this readout.
    """
    path, _, readout = text.partition(":")
    steps = [int(file.stem.removeprefix("step_")) for file in Path(path, "eval_results").glob("step_*.json")]
    if not steps:
        raise ConfigError(f"{path} has no eval_results/step_<N>.json; give the directory of a finished run")
    result = EvaluationResult.read(Path(path, "eval_results", f"step_{max(steps)}.json"))
    if not result.few_shot:
        raise ConfigError(
            f"{path}: the evaluation of step {result.step} has no few-shot accuracy; train with "
            "evaluation.n_tasks above 0"
        )
    if not readout and len(result.few_shot) == 1:
        readout = next(iter(result.few_shot))
    if readout not in result.few_shot:
        raise ConfigError(
            f"{text}: choose one of the evaluated readouts, e.g. {path}:{next(iter(result.few_shot))}"
            f" (available: {', '.join(result.few_shot)})"
        )
    return Entry(text, result.step, result.validation_loss, result.few_shot[readout], result.task_key)


def paired_differences(a: Entry, b: Entry) -> tuple[Estimate, Estimate]:
    """Return the mean over tasks of the accuracy difference a - b, before and after adaptation, with 95 % intervals.

    Raises:
        ConfigError: the runs were evaluated on different tasks or with different numbers of adaptation steps.
    """
    n_a, n_b = len(a.few_shot.before), len(b.few_shot.before)
    if a.task_key != b.task_key or n_a != n_b:
        raise ConfigError(
            f"{a.name} and {b.name} were evaluated on different tasks ({n_a} and {n_b}); evaluate both with the same "
            "data, smlmt, evaluation.word_split and evaluation.n_tasks"
        )
    steps_a, steps_b = len(a.few_shot.by_step) - 1, len(b.few_shot.by_step) - 1
    if steps_a != steps_b:
        raise ConfigError(
            f"{a.name} and {b.name} were adapted for {steps_a} and {steps_b} steps; evaluate both with the same "
            "evaluation.adaptation_steps"
        )
    before = np.subtract(a.few_shot.before, b.few_shot.before)
    after = np.subtract(a.few_shot.after, b.few_shot.after)
    return Estimate.of(before), Estimate.of(after)
