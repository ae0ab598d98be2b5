#!/usr/bin/env python
"""Convert raw text to token shards, or train a tokenizer.

    python scripts/prepare_data.py tokenizer 'corpus/*.jsonl' --vocab_size 50000 --out tokenizers/mine
    python scripts/prepare_data.py shards 'corpus/*.jsonl' --tokenizer tokenizers/mine --out data/mine
    python scripts/prepare_data.py shards --dataset roneneldan/TinyStories --tokenizer gpt2 --out data/stories

The shards have the schema of pico-lm/pretokenized-dolma. Train on them with data.source=shards. Run the same command
again to resume an interrupted job.
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pico_ds.command_line import exit_code_of
from pico_ds.config.argument_types import at_least
from pico_ds.console import make_console
from pico_ds.data.shards.shard_preparation import Counts, Preparation, Source, hub_source, local_source
from pico_ds.data.text.tokenizer import train_tokenizer
from pico_ds.errors import DataError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("shards", "tokenize text into shards"), ("tokenizer", "train a byte-level BPE on text")):
        command = commands.add_parser(name, help=text)
        command.add_argument("paths", nargs="*", metavar="FILE", help=".txt, .jsonl or .parquet file, or a glob")
        command.add_argument("--dataset", help="id of a hub dataset, instead of files")
        command.add_argument("--subset", help="subset of --dataset")
        command.add_argument("--split", default="train", help="split of --dataset")
        command.add_argument("--text_column", default="text", help="field or column that holds the text")
        command.add_argument(
            "--txt_documents",
            choices=["file", "paragraph"],
            default="file",
            help="content of one document in a .txt file",
        )
        command.add_argument("--out", type=Path, required=True, help="output directory")
        if name == "tokenizer":
            command.add_argument(
                "--vocab_size", type=at_least(256), default=50_000, help="entries, without special tokens"
            )
            continue
        command.add_argument("--tokenizer", required=True, help="directory or hub id; [MASK] is added if it has none")
        command.add_argument(
            "--sequence_length", type=at_least(2), default=2048, help="tokens that are predicted in each row"
        )
        command.add_argument("--rows_per_shard", type=at_least(1), default=20_480)
        command.add_argument(
            "--workers", type=at_least(1), default=os.cpu_count(), help="number of processes; default: number of cores"
        )
    return parser.parse_args()


def source_of(arguments: argparse.Namespace) -> Source:
    if (arguments.dataset is None) == (not arguments.paths):
        raise DataError("specify either files or --dataset")
    if arguments.dataset is not None:
        return hub_source(arguments.dataset, arguments.subset, arguments.split, arguments.text_column)
    return local_source(arguments.paths, arguments.text_column, arguments.txt_documents)


def make_shards(arguments: argparse.Namespace, source: Source, console: Console) -> None:
    job = Preparation(
        source,
        arguments.tokenizer,
        arguments.out,
        arguments.sequence_length,
        arguments.rows_per_shard,
        arguments.workers,
    )
    text = "{task.fields[documents]:,} documents  {task.completed:,.0f} tokens  {task.speed:,.0f} tokens/s  "
    columns = (SpinnerColumn(), TextColumn(text + "{task.fields[shards]} shards"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, documents=0, shards=0)

        def show(counts: Counts) -> None:
            progress.update(task, completed=counts.tokens, documents=counts.documents, shards=counts.shards)

        is_new = job.run(show)
    counts = job.counts
    if is_new:
        print(
            f"{arguments.out}: {counts.documents:,} documents in {counts.shards} shards; manifest.json has the counts"
        )
    else:
        print(f"{arguments.out}: all shards exist already")
    print(
        f"train on them: data.source=shards 'data.paths=[{arguments.out}/data/*.parquet]' "
        f"data.tokenizer={arguments.out}/tokenizer data.sequence_length={arguments.sequence_length}"
    )


def make_tokenizer(arguments: argparse.Namespace, source: Source) -> None:
    if (arguments.out / "tokenizer.json").exists():
        raise DataError(f"--out: {arguments.out} already contains a tokenizer; choose another directory, or remove it")
    train_tokenizer(source.read(0), arguments.vocab_size, arguments.out)
    print(f"{arguments.out}: trained a byte-level BPE")


def main() -> int:
    arguments = parse_arguments()
    try:
        source = source_of(arguments)
        if arguments.command == "shards":
            make_shards(arguments, source, make_console(stderr=True))
        else:
            make_tokenizer(arguments, source)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
