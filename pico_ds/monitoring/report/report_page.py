"""Writes a self-contained HTML page about some runs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment
from matplotlib import pyplot as plt

from pico_ds.evaluation.few_shot import Estimate
from pico_ds.file_writing import replace_text
from pico_ds.monitoring.report.curve_figures import Plot, plots
from pico_ds.monitoring.report.few_shot_results import judged
from pico_ds.monitoring.report.run_records import Group
from pico_ds.progress import track

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem; max-width: 70rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto } figcaption, .note { color: #555; font-size: .9rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e3e3 }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
thead th { border-bottom: 2px solid #999 } tr.own td { font-weight: 600 }
</style></head><body>
<h1>{{ title }}</h1>
<h2>Runs</h2><div class="wide"><table><thead><tr><th>experiment</th><th>seeds</th><th>learner</th><th>head</th>
<th>inner steps</th><th>outer steps</th><th>tokens</th><th>validation loss</th></tr></thead><tbody>
{% for row in runs %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% for table in tables %}<h2>{{ table.title }}</h2><p class="note">{{ table.note }}</p><div class="wide"><table><thead><tr>
<th>method</th>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}<tr{% if row.own %} class="own"{% endif %}><td>{{ row.name }}</td>
{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endfor %}
<h2>Curves</h2><p class="note">Runs are compared at equal tokens. Lines are means over seeds, bands their least and most.</p>
{% for image in images %}<figure><img alt="{{ image.caption }}" src="data:image/png;base64,{{ image.data }}">
<figcaption>{{ image.caption }}</figcaption></figure>
{% endfor %}</body></html>
"""


@dataclass(frozen=True)
class Row:
    """One row of a table. `own` is true for the learner and false for a baseline."""

    name: str
    cells: list[str]
    own: bool


@dataclass(frozen=True)
class FewShotTable:
    """Few-shot accuracies of all experiments on the same tasks."""

    title: str
    note: str
    columns: list[str]
    rows: list[Row]


def write_report(groups: Sequence[Group], directory: Path) -> Path:
    """Write report.html, which needs no network, and every figure as a PNG file next to it.

    Returns:
        the path of report.html.
    """
    directory.mkdir(parents=True, exist_ok=True)
    images = [
        {"caption": plot.caption, "data": _save(plot, directory)} for plot in track(plots(groups), "drawing figures")
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    title = "pico_ds: " + ", ".join(group.name for group in groups)
    content = page.render(
        title=title, runs=[_run_row(g) for g in groups], tables=few_shot_tables(groups), images=images
    )
    path = directory / "report.html"
    replace_text(path, content)
    return path


def _save(plot: Plot, directory: Path) -> str:
    buffer = io.BytesIO()
    plot.figure.savefig(buffer, dpi=150, format="png")
    plt.close(plot.figure)
    (directory / f"{plot.name}.png").write_bytes(buffer.getvalue())
    return base64.b64encode(buffer.getvalue()).decode()


def _run_row(group: Group) -> list[str]:
    config = group.records[0].config
    seeds = sorted(record.config.training.seed for record in group.records)
    tokens = [record.most("tokens") for record in group.records]
    losses = [values[-1] for record in group.records if len(values := record.series("eval/validation_loss")[1])]
    last = {record.most("step") for record in group.records}
    return [
        group.name,
        ", ".join(map(str, seeds)),
        config.meta.learner,
        config.meta.head,
        str(config.meta.inner_steps),
        " / ".join(f"{step:,}" for step in sorted(last)),
        f"{np.mean(tokens):,.0f}",
        f"{np.mean(losses):.3f}" if losses else "",
    ]


def few_shot_tables(groups: Sequence[Group]) -> list[FewShotTable]:
    """Return one table per kind of task, with a row per method and a column per experiment.

    Cells of the later experiments also have the paired difference to the first experiment.
    """
    tables = []
    for setting in judged(groups):
        names = [*setting.columns]
        means = {name: column.methods for name, column in setting.columns.items()}
        methods = [*dict.fromkeys(method for found in means.values() for method in found)]
        rows = [
            Row(
                method,
                [_cell(means[name].get(method), means[names[0]].get(method), name == names[0]) for name in names],
                own,
            )
            for method in methods
            for own in [method.startswith("adapted")]
        ]
        note = "Accuracy [%] with 95 % intervals over tasks, tasks averaged over seeds"
        note += "; in brackets the paired difference to the first." if len(names) > 1 else "."
        if cut := [name for name, column in setting.columns.items() if column.is_cut]:
            note += f" Of {', '.join(cut)}: the tasks and steps that all seeds have."
        tables.append(FewShotTable(f"Few-shot: {setting.title}", note, names, rows))
    return tables


def _cell(values: list[float] | None, first: list[float] | None, is_first: bool) -> str:
    if values is None:
        return ""
    text = Estimate.of(values).percent()
    if is_first or first is None or len(first) != len(values) or values == first:
        return text
    return f"{text} ({Estimate.of(np.subtract(values, first)).percent(signed=True)})"
