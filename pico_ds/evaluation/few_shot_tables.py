"""Evaluation results as tables for a terminal."""

from collections.abc import Callable, Iterator, Mapping
from statistics import mean, stdev

import numpy as np
import numpy.typing as npt
from rich.table import Table

from pico_ds.evaluation.few_shot import Estimate
from pico_ds.evaluation.few_shot_grid import Setting, SettingResult
from pico_ds.evaluation.perplexity import PerplexityResult
from pico_ds.evaluation.task_audit import Audit
from pico_ds.evaluation.token_classification import FineTuned

#: adaptation steps that get a row, up to the number of steps of the evaluation
_SHOWN_STEPS = (0, 1, 2, 3, 5, 10, 20, 50, 100)


def grid_tables(results: dict[Setting, SettingResult], title: str) -> Iterator[Table]:
    """Yield a table for each value of `documents`, with methods as rows and the shapes that have results as columns."""
    for documents in dict.fromkeys(setting.documents for setting in results):
        suffix = "" if documents == "any" else f"; support and query from {documents} documents"
        table = Table(title=title + suffix, title_justify="left")
        table.add_column("method", no_wrap=True)
        found = {
            setting: result
            for setting, result in results.items()
            if result.problem is None and setting.documents == documents
        }
        for setting in found:
            table.add_column(f"{setting.shape.n_way}-way {setting.shape.k_shot}-shot", justify="right", no_wrap=True)
        if found:
            _fill(table, [*found.values()])
            yield table


def _fill(table: Table, found: list[SettingResult]) -> None:
    for name in found[0].by_method:
        table.add_row(name, *(percent(result.by_method[name]) for result in found))
    for step in shown_steps(len(found[0].by_step) - 1):
        name = "adapted, 1 step" if step == 1 else f"adapted, {step} steps"
        table.add_row(name, *(percent(result.by_step[step]) for result in found))


def audit_tables(found: Mapping[str, Audit]) -> Iterator[Table]:
    """Yield a table of shortcut accuracies and a table of counts, with a column for each audit."""
    table = Table(title="accuracy of a logistic regression on one shortcut [%]", title_justify="left")
    counts = Table(title="counts", title_justify="left")
    for each, first in ((table, "shortcut"), (counts, "")):
        each.add_column(first, no_wrap=True)
        for name in found:
            each.add_column(name, justify="right", no_wrap=True)
    audits = [*found.values()]
    table.add_row("chance", *(f"{100 * audit.chance:.1f}" for audit in audits))
    for shortcut in dict.fromkeys(name for audit in audits for name in audit.accuracies):
        table.add_row(shortcut, *(percent(audit.accuracies.get(shortcut, [])) for audit in audits))
    rows: dict[str, Callable[[Audit], str]] = {
        "tasks": lambda audit: f"{audit.n_tasks:,}",
        "contexts": lambda audit: f"{audit.n_contexts:,}",
        "query contexts": lambda audit: f"{audit.n_query:,}",
        "exact copies": lambda audit: f"{audit.exact_copies:,}",
        "queries nearly equal to support": lambda audit: f"{audit.near_copies:,}",
        "contexts with a visible word": lambda audit: f"{audit.visible.total():,}",
        "tasks with unbalanced labels": lambda audit: f"{audit.unbalanced:,}",
        "words that can be classes": lambda audit: f"{audit.balance.n_words:,}" if audit.balance else "",
        "least sampled word / mean": lambda audit: f"{audit.balance.least:.2f}" if audit.balance else "",
        "most sampled word / mean": lambda audit: f"{audit.balance.most:.2f}" if audit.balance else "",
        "p of uniformly sampled words": lambda audit: f"{audit.balance.p_value:.2g}" if audit.balance else "",
        "tokens in words": lambda audit: _share(audit.word_share),
        "words unknown to masking": lambda audit: _share(audit.unknown_share),
    }
    for name, cell in rows.items():
        counts.add_row(name, *map(cell, audits))
    yield from (table, counts)


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def shown_steps(last: int) -> list[int]:
    """Return the adaptation steps from 0 to `last` that get a row. `last` is one of them."""
    return sorted({step for step in _SHOWN_STEPS if step < last} | {last})


def percent(values: list[float]) -> str:
    """Return the mean and 95 % interval in percent; only the mean if all values are equal; empty without values."""
    if not values:
        return ""
    estimate = Estimate.of(values)
    if len(set(values)) == 1:
        return f"{100 * estimate.mean:.1f}"
    return estimate.percent()


def percent_difference(a: npt.ArrayLike, b: npt.ArrayLike) -> str:
    """Return the mean of the paired differences a - b over tasks, with its 95 % interval, in percent."""
    return Estimate.of((np.asarray(a) - np.asarray(b)).tolist()).percent(signed=True)


def percent_difference_by_seed(a: npt.ArrayLike, b: npt.ArrayLike) -> str:
    """Return the mean of the paired differences a - b in percent, with 95 % intervals over tasks and over seeds.

    Args:
        a, b: accuracies, `[seeds, tasks]`.
    """
    differences = np.asarray(a) - np.asarray(b)
    over_seeds = Estimate.of_seeds(differences.mean(axis=1)).half_width
    text = Estimate.of(differences.mean(axis=0)).percent(signed=True)
    return f"{text} (± {100 * over_seeds:.1f})" if np.isfinite(over_seeds) else text


def perplexity_table(result: PerplexityResult, title: str) -> Table:
    """Return a table with a row for all tokens and, if there are several domains, a row for each."""
    table = Table(title=title, title_justify="left")
    table.add_column("domain", no_wrap=True)
    for name in ("perplexity", "loss", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = {**(result.by_domain if len(result.by_domain) > 1 else {}), "all": result.total}
    for domain, found in rows.items():
        table.add_row(domain, f"{found.perplexity:,.2f}", f"{found.loss:.4f}", f"{found.n_tokens:,}")
    return table


def ner_table(found: dict[str, list[FineTuned]], title: str) -> Table:
    """Return a table of F1 (mean, standard deviation over seeds) and optimizer steps, by model and fine-tuning mode."""
    table = Table(title=title, title_justify="left")
    table.add_column("fine-tuned", no_wrap=True)
    table.add_column("mean ± deviation", justify="right", no_wrap=True)
    table.add_column("by seed", no_wrap=True)
    table.add_column("steps", no_wrap=True)
    for name, seeds in found.items():
        values = [run.f1 for run in seeds]
        deviation = stdev(values) if len(values) > 1 else 0.0
        each = "  ".join(f"{100 * value:.1f}" for value in values)
        steps = "  ".join(f"{run.steps}{'*' * run.at_limit}" for run in seeds)
        table.add_row(name, f"{100 * mean(values):.1f} ± {100 * deviation:.1f}", each, steps)
    if any(run.at_limit for seeds in found.values() for run in seeds):
        table.caption = "* stopped at the maximum number of steps while still improving on the dev set"
    return table
