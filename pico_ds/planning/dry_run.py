"""Prints the resolved configuration and the estimated costs of a run (`--dry-run`)."""

import os
from typing import Any

from rich.table import Table

from pico_ds.config import RunConfig, dump_config
from pico_ds.config.deepspeed_config import resolve_deepspeed_config, zero_stage
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS, probable_mistakes
from pico_ds.console import make_console
from pico_ds.engine.zero_checks import check_zero_settings
from pico_ds.planning.run_plan import Plan, make_plan

_GIB = 2**30


def print_plan(config: RunConfig, deepspeed_json: dict[str, Any], name: str, world_size: int | None) -> None:
    """Print the configuration, parameter count, work per step, memory per rank and communication per step.

    Args:
        world_size: number of ranks to plan for; None uses $WORLD_SIZE, or 1 if it is not set.

    Raises:
        ConfigError: the configuration is invalid.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    world_size = world_size or int(os.environ.get("WORLD_SIZE", "1"))
    check_zero_settings(deepspeed_json["zero_optimization"], name)
    resolve_deepspeed_config(deepspeed_json, config, world_size, name)
    vocab_size = config.model.vocab_size
    if vocab_size is None:
        from pico_ds.data.corpus import open_corpus

        vocab_size = open_corpus(config.data).tokenizer.vocab_size
    plan = make_plan(config, deepspeed_json, vocab_size, world_size)
    console = make_console()
    console.print(dump_config(config), soft_wrap=True)
    for warning in probable_mistakes(config):
        console.print(f"warning: {warning}", soft_wrap=True)
    console.print(_work(config, plan, zero_stage(deepspeed_json), name), soft_wrap=True)
    titles = {"ar": "AR step", "meta": "meta step", "update": "update"}
    steps = {titles[phase]: parts for phase, parts in plan.memory.items()}
    console.print(_bytes_table("memory per rank, upper bound [GiB]", steps))
    console.print(_bytes_table("host memory per rank [GiB]", {"any step": plan.host_memory}))
    if plan.communication:
        console.print(
            _bytes_table("communication per outer step, payload per rank [GiB]", {"any step": plan.communication})
        )
        console.print(
            "The inner loop does not communicate, so these bytes do not depend on inner_steps or the number of tasks."
        )
    else:
        console.print("One rank does not communicate.")


def _work(config: RunConfig, plan: Plan, stage: int, name: str) -> str:
    smlmt, meta = config.smlmt, config.meta
    lines = [
        f"parameters        {plan.n_parameters:,}",
        f"ranks             {plan.world_size}, ZeRO stage {stage} ({name})",
        f"AR step           {plan.ar_tokens_per_step:,} tokens ({config.training.global_batch_size} rows; at most "
        f"{plan.rows_per_rank} per rank)",
    ]
    if config.meta_ratio > 0:
        lines += [
            f"meta step         {plan.meta_tokens_per_step:,} tokens ({meta.tasks_per_step} tasks of "
            f"{_range(smlmt.n_ways)} x ({_range(smlmt.k_shots)} + {smlmt.q_query}) contexts of "
            f"{smlmt.context_tokens + LAYOUT_EXTRA_TOKENS} tokens; "
            f"at most {plan.tasks_per_rank} per rank), {meta.inner_steps} inner steps",
            f"mix               {smlmt.warmup_steps} AR steps, then {config.meta_ratio:.0%} meta steps",
        ]
    return "\n".join(lines)


def _range(bounds: tuple[int, int]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"


def _bytes_table(title: str, columns: dict[str, dict[str, int]]) -> Table:
    """Return a table with a row for each part that is not 0 in all columns, and a column for each kind of step."""
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("part", footer="total")
    for name, parts in columns.items():
        table.add_column(name, justify="right", footer=f"{sum(parts.values()) / _GIB:.3f}")
    for part in dict.fromkeys(part for parts in columns.values() for part in parts):
        sizes = [parts.get(part, 0) for parts in columns.values()]
        if any(sizes):
            table.add_row(part, *(f"{size / _GIB:.3f}" if size else "" for size in sizes))
    return table
