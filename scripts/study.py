#!/usr/bin/env python
"""Train all learners on the embedded corpus with an equal budget and several seeds, and compare them on equal tasks.

    python scripts/study.py measure                            time the steps of each method, on an idle machine
    python scripts/study.py train --budget tokens --seeds 0 1 2   every method sees as many tokens as FOMAML
    python scripts/study.py train --budget time --seeds 0 1 2     every method trains for the measured time of FOMAML
    python scripts/study.py table --budget tokens --seeds 0 1 2   few-shot accuracy, paired by task

Finished runs are skipped. Run an interrupted command again to resume.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
from rich.table import Table

from pico_ds.command_line import exit_code_of
from pico_ds.config import ConfigError, RunConfig, load_config
from pico_ds.config.argument_types import at_least
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.console import make_console
from pico_ds.evaluation.evaluator import EvaluationResult
from pico_ds.evaluation.few_shot_tables import percent, percent_difference_by_seed
from pico_ds.tasks.hybrid_schedule import step_kind

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "configs" / "demo.yaml"
#: name of the method -> overrides of the demo configuration
METHODS: dict[str, list[str]] = {
    "fomaml": [],
    "ar": ["meta.learner=ar", "evaluation.readouts=[pre, fimpre, fim]"],
    "masked_word": ["meta.learner=masked_word"],
    # multitask does not use the support set, so twice as many tasks have the same number of tokens
    "multitask": ["meta.learner=multitask", "meta.head=vocab", "meta.tasks_per_step=12", "evaluation.head=prototype"],
    "protonet": ["meta.learner=protonet"],
    "anil": ["meta.learner=anil", "meta.inner_steps=3"],
    "boil": ["meta.learner=boil"],
    "reptile": ["meta.learner=reptile", "meta.inner_steps=4"],
    "meta_sgd": ["meta.learner=meta_sgd"],
}
#: the method that defines the budget of the other methods
REFERENCE = "fomaml"
#: number of steps in a measurement, and number of steps at its start that are ignored
MEASURED_STEPS, WARM_UP_STEPS = 24, 8


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "train", "table"])
    parser.add_argument(
        "--budget", choices=["tokens", "time"], default="tokens", help="the budget that is equal for all methods"
    )
    parser.add_argument("--seeds", type=at_least(0), nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--steps", type=at_least(2), default=800, help="outer steps of FOMAML; the first half are autoregressive"
    )
    parser.add_argument("--jobs", type=at_least(1), default=2, help="number of parallel runs, each with one thread")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a key of all runs")
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.command == "measure":
        return measure(arguments)
    if arguments.command == "table":
        return table(arguments)
    calls = [(method, seed) for seed in arguments.seeds for method in arguments.methods]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # any() also catches the negative exit code of a killed run
        return int(any([*pool.map(lambda call: train(call[0], call[1], arguments), calls)]))


def config_of(method: str, seed: int, arguments: argparse.Namespace) -> RunConfig:
    steps = f"smlmt.warmup_steps={arguments.steps // 2}"
    return load_config(CONFIG, [f"training.seed={seed}", steps, *METHODS[method], *arguments.overrides])


def run_name(method: str, seed: int, arguments: argparse.Namespace) -> str:
    # with --budget time the reference run is the one that sets the time, so both budgets share it
    return f"study-{'tokens' if method == REFERENCE else arguments.budget}-{method}-{seed}"


def train(method: str, seed: int, arguments: argparse.Namespace) -> int:
    """Train one run and return its exit code. A run that is already complete is skipped, with exit code 0."""
    name = run_name(method, seed, arguments)
    # step_0.json marks a complete run, because the untrained weights are evaluated last
    if (arguments.runs_dir / name / "eval_results" / "step_0.json").exists():
        return 0
    steps = step_count(method, seed, arguments)
    return start(
        name,
        [f"training.seed={seed}", f"smlmt.warmup_steps={arguments.steps // 2}", f"training.max_steps={steps}"],
        method,
        arguments,
    )


def start(name: str, overrides: list[str], method: str, arguments: argparse.Namespace) -> int:
    """Run scripts/train.py with one thread and return its exit code. The output goes to a file next to the run."""
    location = [f"checkpointing.run_name={name}", f"checkpointing.runs_dir={arguments.runs_dir}"]
    all_overrides = [*METHODS[method], *overrides, *location, "monitoring.wandb.mode=disabled", *arguments.overrides]
    log = arguments.runs_dir / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), "--config", str(CONFIG), *all_overrides]
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    print(f"{name}: {'done' if code == 0 else f'failed, see {log}'}", flush=True)
    return code


def step_count(method: str, seed: int, arguments: argparse.Namespace) -> int:
    """Return the number of outer steps after which a method has the same cost as the reference."""
    cost = tokens_of_steps if arguments.budget == "tokens" else seconds_of_steps
    goal = sum(cost(REFERENCE, seed, arguments, range(arguments.steps)))
    done = 0.0
    for step, step_cost in enumerate(cost(method, seed, arguments, count())):
        done += step_cost
        # round to the nearest whole number of steps
        if done - step_cost / 2 > goal:
            return step
    raise AssertionError("steps do not end")


def tokens_of_steps(
    method: str, seed: int, arguments: argparse.Namespace, steps: "range | count[int]"
) -> Iterator[float]:
    """Return the number of training tokens of each step."""
    config = config_of(method, seed, arguments)
    smlmt = config.smlmt
    contexts_per_class = smlmt.q_query if method == "multitask" else smlmt.k_shots[1] + smlmt.q_query
    contexts = config.meta.tasks_per_step * smlmt.n_ways[1] * contexts_per_class
    by_kind = {
        "meta": contexts * (smlmt.context_tokens + LAYOUT_EXTRA_TOKENS),
        "ar": config.training.global_batch_size * config.data.sequence_length,
    }
    return (float(by_kind[step_kind(step, config)]) for step in steps)


def seconds_of_steps(
    method: str, seed: int, arguments: argparse.Namespace, steps: "range | count[int]"
) -> Iterator[float]:
    """Return the seconds that each step takes, as measured by `measure`.

    Raises:
        ConfigError: there are no measurements yet.
    """
    path = arguments.runs_dir / "study-seconds.json"
    if not path.exists():
        raise ConfigError(f"{path} does not exist; run `python scripts/study.py measure` first, on an idle machine")
    seconds, config = json.loads(path.read_text()), config_of(method, seed, arguments)
    by_kind = {"meta": seconds[method], "ar": seconds["ar"]}
    return (by_kind[step_kind(step, config)] for step in steps)


def measure(arguments: argparse.Namespace) -> int:
    """Time the steps of every method, one method after another, and write the seconds to study-seconds.json.

    The steps are autoregressive for the method `ar`, and meta steps for all other methods.

    Returns:
        the exit code: 1 if a run failed.
    """
    seconds = {}
    for method in METHODS:
        name = f"study-seconds-{method}"
        settings = [f"training.max_steps={MEASURED_STEPS}", "smlmt.warmup_steps=0", "smlmt.hybrid_ratio=1"]
        settings += ["evaluation.n_tasks=0", "evaluation.n_rows=0", "checkpointing.resume=never"]
        settings += [f"monitoring.log_every_n_steps={WARM_UP_STEPS}"]
        if start(name, settings, method, arguments):
            return 1
        lines = (arguments.runs_dir / name / "logs" / "metrics.jsonl").read_text().splitlines()
        timed = [json.loads(line)["seconds_per_step"] for line in lines]
        seconds[method] = float(np.mean(timed[1:]))
        print(f"{method:<14}{seconds[method]:.3f} s per step", flush=True)
    (arguments.runs_dir / "study-seconds.json").write_text(json.dumps(seconds) + "\n")
    return 0


def table(arguments: argparse.Namespace) -> int:
    """Print the accuracy of each method, as means over the seeds for each task.

    Differences to the reference are paired by task.
    """
    results = {method: [read(method, seed, arguments) for seed in arguments.seeds] for method in arguments.methods}
    steps = config_of(REFERENCE, 0, arguments).evaluation.adaptation_steps
    results_table = Table(
        title=f"equal {arguments.budget}, {len(arguments.seeds)} seeds, test words [%, 95 % interval over tasks (in "
        "parentheses: over seeds, Student's t)]"
    )
    columns = ("method", "readout", "val. loss", "before", f"after {steps} steps", "gain", "by seed, before")
    for column in (*columns, f"before - {REFERENCE}", f"after - {REFERENCE}"):
        results_table.add_column(column, justify="left" if column in columns[:2] else "right", no_wrap=True)
    reference = by_seed(results.get(REFERENCE) or [read(REFERENCE, seed, arguments) for seed in arguments.seeds], "fim")
    for method, evaluations in results.items():
        # a control with several readouts gets its best one, chosen on the reported tasks, which favours the control
        readout = max(evaluations[0].few_shot, key=lambda name: float(np.mean(by_seed(evaluations, name)[0])))
        before, after = by_seed(evaluations, readout)
        losses = [evaluation.validation_loss for evaluation in evaluations if evaluation.validation_loss is not None]
        seeds = "  ".join(f"{100 * np.mean(evaluation.few_shot[readout].before):.1f}" for evaluation in evaluations)
        differences = [
            percent_difference_by_seed(values, reference_values)
            for values, reference_values in zip((before, after), reference, strict=True)
        ]
        results_table.add_row(
            method,
            readout,
            f"{np.mean(losses):.3f}",
            percent(before.mean(axis=0).tolist()),
            percent(after.mean(axis=0).tolist()),
            percent_difference_by_seed(after, before),
            seeds,
            *(differences if method != REFERENCE else ("", "")),
        )
    make_console(width=200).print(results_table)
    return 0


def read(method: str, seed: int, arguments: argparse.Namespace) -> EvaluationResult:
    """Return the evaluation at the end of a run.

    Raises:
        ConfigError: the run is not finished.
    """
    directory = arguments.runs_dir / run_name(method, seed, arguments) / "eval_results"
    steps = [int(path.stem.removeprefix("step_")) for path in directory.glob("step_*.json")]
    if 0 not in steps:
        raise ConfigError(f"{directory.parent} is not a finished run; run `python scripts/study.py train` first")
    return EvaluationResult.read(directory / f"step_{max(steps)}.json")


def by_seed(evaluations: list[EvaluationResult], readout: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracies before and after adaptation, each of shape [seeds, tasks]."""
    results = [evaluation.few_shot[readout] for evaluation in evaluations]  # type: ignore[index]
    return np.array([result.before for result in results]), np.array([result.after for result in results])


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
