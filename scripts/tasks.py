#!/usr/bin/env python
"""Print tasks, count their words, or check that no shortcut such as the length of a context reveals its class.

python scripts/tasks.py show --config configs/demo.yaml --n 3
python scripts/tasks.py show --split test --n 1 smlmt.k_shot=1
python scripts/tasks.py stats --config configs/demo.yaml
python scripts/tasks.py audit --config configs/demo.yaml --tasks 400

Override any key of the configuration with section.key=value.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pico_ds.command_line import exit_code_of
from pico_ds.config import RunConfig, load_config
from pico_ds.config.argument_types import at_least
from pico_ds.console import make_console
from pico_ds.data.corpus import Corpus, open_corpus
from pico_ds.evaluation.few_shot_tables import audit_tables
from pico_ds.evaluation.task_audit import audit
from pico_ds.tasks.index.class_words import WORD_SPLITS
from pico_ds.tasks.task_builder import TaskBuilder
from pico_ds.tasks.task_statistics import describe, task_figures

REPOSITORY = Path(__file__).resolve().parents[1]
#: widest bar of a histogram [characters]
BAR = 40


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["show", "stats", "audit"])
    parser.add_argument(
        "--config", type=Path, default=REPOSITORY / "configs" / "demo.yaml", help="YAML configuration of the run"
    )
    parser.add_argument("--n", type=at_least(1), default=3, help="number of tasks to show")
    parser.add_argument("--tasks", type=at_least(2), default=400, help="number of tasks of each split to audit")
    parser.add_argument("--step", type=at_least(0), help="outer step whose tasks are used; default: the last step")
    parser.add_argument("--split", choices=WORD_SPLITS, default="train", help="split of the class words")
    parser.add_argument(
        "--as_read", action="store_true", help="show the tokens in the order of smlmt.readout, as the model reads them"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a key of the YAML")
    return parser.parse_intermixed_args()


def step_of(config: RunConfig, arguments: argparse.Namespace) -> int:
    return config.training.max_steps - 1 if arguments.step is None else int(arguments.step)


def show(console: Console, config: RunConfig, corpus: Corpus, arguments: argparse.Namespace) -> None:
    builder = TaskBuilder(config, corpus)
    readout = config.smlmt.readout if arguments.as_read else "mask"
    step = step_of(config, arguments)
    if arguments.split == "train":
        tasks = builder.training(readout)
    else:
        # every evaluation uses the held-out tasks of step 0
        tasks, step = builder.held_out(arguments.split, readout), 0
    for index in range(arguments.n):
        episode = tasks.sample(step, index)
        support, query = (len(part.labels) // episode.n_way for part in (episode.support, episode.query))
        console.print(
            f"task {index} of step {step}: {episode.n_way}-way, {support}-shot, {query} queries per class: "
            f"{', '.join(episode.words)}",
            style="bold",
            soft_wrap=True,
        )
        for line in describe(episode, corpus.tokenizer):
            console.print(line, soft_wrap=True)
        console.print()


def stats(console: Console, config: RunConfig, corpus: Corpus) -> None:
    figures = task_figures(config, corpus)
    smlmt = config.smlmt
    sample = figures.sample
    console.print(f"words of the corpus     {figures.words:,}")
    console.print(
        f"words of a sample       {sample.words:,} in the text; {sample.found:,} are found from its tokens "
        f"({sample.found / max(1, sample.words):.1%}), {sample.usable:,} can be masked as a class, and "
        f"{sample.false:,} false words are found",
    )
    table = Table(
        title=f"class words: frequency {smlmt.min_word_freq:,} to {smlmt.max_word_freq:,}", title_justify="left"
    )
    for column in ("split", "words", "contexts of a word: minimum", "median", "maximum", "documents"):
        table.add_column(column, justify="left" if column in ("split", "documents") else "right")
    for split in figures.splits:
        documents = "training" if split.split == "train" else "held out"
        table.add_row(split.split, f"{split.words:,}", *(f"{count:,}" for count in split.occurrences), documents)
    console.print(table)
    total = sum(figures.length_counts.values())
    console.print(f"tokens of a context, out of {smlmt.context_tokens + 1} positions ({total:,} contexts)")
    for length, count in figures.length_counts.items():
        bar = "█" * max(1, round(BAR * count / max(figures.length_counts.values())))
        console.print(f"{length:>5} {count / total:>6.1%} {bar}")
    console.print(f"padded tokens           {figures.padded_share:.1%}")


def audit_tasks(console: Console, config: RunConfig, corpus: Corpus, arguments: argparse.Namespace) -> list[str]:
    """Print the audit of training, held-out and injected tasks, and return the problems found."""
    builder, found = TaskBuilder(config, corpus), {}
    run = partial(audit, tokenizer=corpus.tokenizer, n_tasks=arguments.tasks)
    is_window = config.smlmt.context == "window"
    found["train"] = run(builder.training_words(0), step=step_of(config, arguments), check_lengths=is_window)
    for split in WORD_SPLITS[1:]:
        found[split] = run(builder.held_out(split), check_lengths=is_window)
    if injected := builder.injected():
        found["injected"] = run(injected, step=step_of(config, arguments), check_lengths=False)
    for table in audit_tables(found):
        console.print(table)
    return [f"{kind} tasks: {problem}" for kind, result in found.items() for problem in result.problems]


def main() -> int:
    arguments, console = parse_arguments(), make_console()
    config = load_config(arguments.config, arguments.overrides)
    corpus = open_corpus(config.data)
    if arguments.command == "show":
        show(console, config, corpus, arguments)
    elif arguments.command == "audit":
        problems = audit_tasks(console, config, corpus, arguments)
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        return 1 if problems else 0
    else:
        stats(console, config, corpus)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
