"""Prints the report at the end of a run."""

import io
import shlex

from rich.console import Console
from rich.table import Table

from pico_ds.config import RunConfig
from pico_ds.console import make_console
from pico_ds.evaluation.evaluator import EvaluationResult
from pico_ds.evaluation.few_shot import Estimate
from pico_ds.meta.starting_model import initial_weights_name
from pico_ds.monitoring.run_log import log_lines
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.training.run_context import RunContext
from pico_ds.training.training_state import TrainingState


def print_report(
    context: RunContext, state: TrainingState, results: dict[int, EvaluationResult], train_seconds: float
) -> None:
    """Print the results, the paths of the files, and commands to run next, to the terminal and to the log."""
    log = io.StringIO()
    consoles: list[Console] = [context.console, make_console(file=log, width=120)]
    for console in consoles:
        console.print()
        console.print(results_table(context.config, results))
        console.print(_files_and_commands(context, state, train_seconds), soft_wrap=True)
    log_lines(log.getvalue())


def _files_and_commands(context: RunContext, state: TrainingState, train_seconds: float) -> str:
    run = context.run
    minutes, seconds = divmod(round(train_seconds), 60)
    work = f"{state.step} outer steps ({state.tasks} tasks, {state.rows} rows) in {minutes} min {seconds:02d} s"
    skipped = f", {state.skipped_steps} skipped" if state.skipped_steps else ""
    checkpoint = run.checkpoints / f"step_{state.step}"
    lines = [
        f"{work}{skipped}",
        "",
        f"Files:    {run.path}/",
        f"  weights   {checkpoint}  (AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True))",
        f"  metrics   {run.metrics}",
        f"  results   {run.eval_results}",
        f"  config    {run.training_config}",
        "Next:",
        *_next_commands(context.config, context.config_name, run, context.process.world_size),
    ]
    return "\n".join(lines)


def _next_commands(config: RunConfig, config_name: str, run: RunDirectory, world_size: int) -> list[str]:
    compare = f"  compare         python scripts/compare.py {shlex.quote(str(run.path))} OTHER_RUN:READOUT"
    if config_name != "demo.yaml":
        return [compare]
    # the configuration in the run directory includes the overrides of the command line
    arguments = f"scripts/train.py --config {shlex.quote(str(run.training_config))}"
    if config.checkpointing.run_name is not None:
        arguments += " checkpointing.run_name=null"
    train = f"python {arguments}"
    control = f"  control run     {train} smlmt.hybrid_ratio=0 'evaluation.readouts=[pre, fimpre, fim]'"
    return [
        f"  another seed    {train} training.seed={config.training.seed + 1}",
        *([control] if config.meta_ratio > 0 else []),
        compare,
        *([f"  two ranks       torchrun --nproc_per_node 2 {arguments}"] if world_size == 1 else []),
        "  plan a 1B run   python scripts/train.py --config configs/pico-maml-1b.yaml --dry-run --world-size 8",
    ]


def results_table(config: RunConfig, results: dict[int, EvaluationResult]) -> Table:
    """Return a table of validation loss and few-shot accuracy, with a row for each evaluation and readout."""
    smlmt, settings = config.smlmt, config.evaluation
    readouts = list(next(iter(results.values())).few_shot)
    has_readout_column = len(readouts) > 1
    readout_note = f", readout {readouts[0]}" if len(readouts) == 1 else ""
    table = Table(
        title=f"{smlmt.n_ways[1]}-way {smlmt.k_shots[1]}-shot accuracy on held-out {settings.word_split} words in "
        f"held-out documents, {settings.n_tasks} tasks{readout_note} [%, 95 % interval]",
        title_justify="left",
    )
    table.add_column("model")
    table.add_column("val. loss", justify="right", no_wrap=True)
    has_perplexity = any(result.perplexity is not None for result in results.values())
    if has_perplexity:
        table.add_column("perplexity", justify="right", no_wrap=True)
    if has_readout_column:
        table.add_column("readout", no_wrap=True)
    for column in ("before", f"after {settings.adaptation_steps} steps"):
        table.add_column(column, justify="right", no_wrap=True)
    if readouts:
        chance = f"{100 / smlmt.n_ways[1]:.1f}"
        table.add_row("chance", "", *[""] * (has_perplexity + has_readout_column), chance, chance)
    for step in sorted(results):
        result = results[step]
        name, loss = (
            _evaluation_name(step, config),
            "" if result.validation_loss is None else f"{result.validation_loss:.3f}",
        )
        perplexity_cells = [f"{result.perplexity.total.perplexity:,.1f}" if result.perplexity else ""] * has_perplexity
        if not readouts:
            table.add_row(name, loss, *perplexity_cells)
        for readout, found in result.few_shot.items():
            accuracies = [Estimate.of(values).percent() for values in (found.before, found.after)]
            table.add_row(name, loss, *perplexity_cells, *[readout] * has_readout_column, *accuracies)
            name, loss, perplexity_cells = "", "", [""] * has_perplexity
    return table


def _evaluation_name(step: int, config: RunConfig) -> str:
    smlmt, last = config.smlmt, config.training.max_steps
    if step == 0:
        return initial_weights_name(config)
    if config.meta_ratio > 0 and step == smlmt.warmup_steps:
        return f"after AR warm-up, step {step}"
    if step == last:
        has_meta_steps = config.meta_ratio > 0 and last > smlmt.warmup_steps
        return f"after {'meta-' if has_meta_steps else 'AR '}training, step {step}"
    return f"step {step}"
