#!/usr/bin/env python
"""Evaluate a trained model.

    python scripts/evaluate.py few-shot runs/demo-001 --tasks 400 --steps 20
    torchrun --nproc_per_node 8 scripts/evaluate.py few-shot runs/pico --documents any same different
    python scripts/evaluate.py few-shot runs/demo-001 --data labelled.jsonl --shapes 2x5
    python scripts/evaluate.py few-shot runs/demo-001 --ner train.conll dev.conll test.conll
    python scripts/evaluate.py perplexity runs/demo-001 --data pico-lm/pretokenized-paloma-tinsy

Override any key of the run's configuration with section.key=value. Results are written to eval_results/ of the run.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from rich.console import Console

from pico_ds.command_line import exit_code_of
from pico_ds.config import ConfigError, Readout
from pico_ds.config.argument_types import at_least, task_shape
from pico_ds.console import make_console
from pico_ds.engine.distributed import Process, start_process, stop_process
from pico_ds.errors import TaskError
from pico_ds.evaluation.conll_files import read_conll
from pico_ds.evaluation.evaluator import grid_key
from pico_ds.evaluation.few_shot_grid import Setting, SettingResult, best_readout, evaluate_grid, grid_name, write_grid
from pico_ds.evaluation.few_shot_tables import grid_tables, ner_table, perplexity_table
from pico_ds.evaluation.perplexity import build_perplexity_dataset, evaluate_perplexity, perplexity_dataset_name
from pico_ds.evaluation.token_classification import Splits, evaluate_ner, write_ner
from pico_ds.progress import redirect_progress
from pico_ds.runs.trained_run import TrainedModel, load_trained_model
from pico_ds.tasks.index.class_words import WordSplit
from pico_ds.tasks.task_builder import TaskBuilder
from pico_ds.tasks.task_shape import TaskShape
from pico_ds.tasks.task_source import TaskSource

READOUTS: tuple[Readout, ...] = get_args(Readout)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["few-shot", "perplexity"])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run, whose newest checkpoint is used")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=task_shape,
        default=[(5, 1), (5, 5), (5, 16), (20, 5), (32, 4)],
        metavar="NxK",
        help="task shapes, N-way K-shot (default: 5x1 5x5 5x16 20x5 32x4)",
    )
    parser.add_argument(
        "--queries", type=at_least(1), default=5, help="query contexts per class (default: %(default)s)"
    )
    parser.add_argument("--tasks", type=at_least(1), default=400, help="tasks per shape (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(0), default=20, help="adaptation steps (default: %(default)s)")
    parser.add_argument(
        "--documents",
        nargs="+",
        choices=["any", "same", "different"],
        default=["any"],
        help="documents of the query contexts of a class, relative to those of its support contexts (default: any)",
    )
    parser.add_argument(
        "--split", choices=["validation", "test"], help="held-out words to use (default: evaluation.word_split)"
    )
    parser.add_argument(
        "--readout",
        choices=[*READOUTS, "best"],
        help="default: smlmt.readout; best: the most accurate readout on words of the other held-out split",
    )
    parser.add_argument(
        "--data",
        help="few-shot: JSONL with text and label, or text and word, to use instead of the corpus; perplexity: files, "
        "or a dataset on the hub (default: evaluation.perplexity.data)",
    )
    parser.add_argument(
        "--on_conflict",
        "--on-conflict",
        choices=["error", "drop"],
        default="error",
        help="texts of --data that have several labels: fail and list them (error, the default), or skip them (drop)",
    )
    parser.add_argument(
        "--max_tokens", type=at_least(4), help="maximum length of a context or row (default: model.max_seq_len)"
    )
    parser.add_argument(
        "--ner",
        type=Path,
        nargs="+",
        metavar="FILE.conll",
        help="evaluate by fine-tuning for token classification: one file, which is split, or train, dev and test",
    )
    parser.add_argument(
        "--seeds",
        type=at_least(1),
        default=3,
        help="fine-tuning runs of --ner per model and mode (default: %(default)s)",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # for the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a key of the run")
    return parser.parse_intermixed_args()


def check_combinations(arguments: argparse.Namespace) -> None:
    other = "--data" if arguments.data is not None else "perplexity" if arguments.command == "perplexity" else None
    if arguments.ner is not None and other is not None:
        raise ConfigError(f"--ner cannot be combined with {other}; run the two evaluations separately")


def settings_of(
    trained: TrainedModel, arguments: argparse.Namespace, process: Process
) -> tuple[str, list[tuple[Setting, Callable[[], TaskSource]]], dict[str, object]]:
    """Return the readout, the settings and the task source to evaluate.

    Returns:
        the readout, every setting with a function that makes its tasks, and a description of the task source to record
        with the results.

    Raises:
        ConfigError: `--readout best` is given with `--data`.
    """
    shapes = [TaskShape(n_way, k_shot, arguments.queries) for n_way, k_shot in arguments.shapes]
    config = trained.config
    if arguments.data is not None:
        if arguments.readout == "best":
            raise ConfigError(
                "--readout best cannot be combined with --data, because it needs words of the corpus; give a readout"
            )
        readout = arguments.readout or config.smlmt.readout
        make = trained.labelled_tasks(Path(arguments.data), arguments.max_tokens, arguments.on_conflict)
        source = {"data": arguments.data, "max_tokens": arguments.max_tokens}
        return readout, [(Setting(shape), partial(make, shape, readout)) for shape in shapes], source
    builder = TaskBuilder(config, trained.open_corpus())
    split: WordSplit = arguments.split or config.evaluation.word_split
    readout = arguments.readout or config.smlmt.readout
    if readout == "best":
        other: WordSplit = "validation" if split == "test" else "test"
        readout = best_readout(
            trained.model,
            lambda candidate: builder.held_out(other, candidate),
            READOUTS,
            min(100, arguments.tasks),
            process,
        )
    pairs: list[tuple[Setting, Callable[[], TaskSource]]] = [
        (Setting(shape, documents), partial(builder.held_out, split, readout, shape, documents))
        for documents in arguments.documents
        for shape in shapes
    ]
    return readout, pairs, {"word_split": split, "task_key": grid_key(config, split)}


def few_shot(trained: TrainedModel, arguments: argparse.Namespace, process: Process, console: Console) -> None:
    readout, settings, source = settings_of(trained, arguments, process)
    results: dict[Setting, SettingResult] = {}
    for setting, result in evaluate_grid(trained.model, settings, arguments.tasks, arguments.steps, process):
        results[setting] = result
        if process.is_main:
            print(f"{setting}: {result.problem or 'done'}", file=sys.stderr, flush=True)
    if all(result.problem is not None for result in results.values()):
        raise TaskError("no shape could be evaluated; the reason for each is printed above")
    if not process.is_main:
        return
    data_name = Path(arguments.data).stem if arguments.data else f"held-out {source['word_split']} words"
    learner = trained.config.meta.learner
    title = (
        f"{trained.directory}: {data_name}, readout {readout}, {learner}, {arguments.tasks} tasks [%, 95 % interval]"
    )
    for table in grid_tables(results, title):
        console.print(table)
    head = trained.model.learner.config.head
    about = {"step": trained.step, "learner": learner, "head": head, "readout": readout, **source}
    about["overrides"] = arguments.overrides
    since = max([trained.written, *([Path(arguments.data).stat().st_mtime] if arguments.data else [])])
    path = trained.run / "eval_results" / f"{grid_name(about, trained.run_config)}_step_{trained.step}.json"
    write_grid(path, results, about, since)
    console.print(f"{path}", soft_wrap=True)


def ner(trained: TrainedModel, arguments: argparse.Namespace, process: Process, console: Console) -> None:
    if len(arguments.ner) not in (1, 3):
        raise ConfigError(f"--ner: got {len(arguments.ner)} files; give one, or three: train, dev and test")
    parts = [read_conll(path) for path in arguments.ner]
    splits = Splits.of_one(parts[0]) if len(parts) == 1 else Splits(*parts)
    longest = arguments.max_tokens or trained.config.model.max_seq_len
    found = evaluate_ner(trained.model, splits, arguments.seeds, longest, process)
    if not process.is_main:
        return
    name = arguments.ner[0].stem
    console.print(ner_table(found, f"{trained.directory}: entity F1 on {name}, {arguments.seeds} seeds [%]"))
    path = trained.run / "eval_results" / f"ner_{name}_step_{trained.step}.json"
    write_ner(path, found, {"step": trained.step, "files": [str(file) for file in arguments.ner]})
    console.print(f"{path}", soft_wrap=True)


def perplexity(trained: TrainedModel, arguments: argparse.Namespace, process: Process, console: Console) -> None:
    config = trained.config
    rows = build_perplexity_dataset(config, trained.model.tokenizer, config.model.vocab_size or 0)
    if rows is None:
        raise ConfigError("--data is not given, and the run's evaluation.perplexity.data is null; set one of them")
    model = trained.model
    batch = config.training.micro_batch_size
    result = evaluate_perplexity(model.network, model.theta, rows, batch, process, lambda: True)
    if not process.is_main:
        return
    texts = config.evaluation.perplexity
    console.print(perplexity_table(result, f"{trained.directory}: {texts.data}; loss in nats per token"))
    path = trained.run / "eval_results" / f"perplexity_{perplexity_dataset_name(texts)}_step_{trained.step}.json"
    result.write(path, {"step": trained.step, **texts.model_dump()})
    console.print(f"{path}", soft_wrap=True)


def main() -> int:
    arguments = parse_arguments()
    console = make_console()
    check_combinations(arguments)
    process = start_process()
    redirect_progress(is_quiet=not process.is_main)
    overrides = arguments.overrides
    if arguments.command == "perplexity":
        if arguments.data is not None:
            overrides = [*overrides, f"evaluation.perplexity.data={json.dumps(arguments.data)}"]
        if arguments.max_tokens is not None:
            overrides = [*overrides, f"evaluation.perplexity.max_length={arguments.max_tokens}"]
    trained = load_trained_model(arguments.checkpoint, overrides, process)
    evaluate = perplexity if arguments.command == "perplexity" else few_shot if arguments.ner is None else ner
    evaluate(trained, arguments, process, make_console(width=max(120, console.width)))
    stop_process()
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
