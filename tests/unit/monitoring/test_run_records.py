"""Reading the records of runs, grouping seeds, and writing the report page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pico_ds.config import ConfigError, dump_config, parse_config
from pico_ds.monitoring.report.run_panels import run_sections
from pico_ds.monitoring.report.run_records import Record, group_by_experiment
from pico_ds.monitoring.report.run_report import write_report
from pico_ds.monitoring.report.run_tables import few_shot_tables


def make_run(
    path: Path, seed: int, learner: str = "fomaml", accuracy: float = 0.5, max_steps: int | None = None
) -> Path:
    (path / "logs").mkdir(parents=True)
    (path / "eval_results").mkdir()
    config = parse_config(
        f"{{meta: {{learner: {learner}}}, training: {{seed: {seed}, max_steps: {max_steps or 100 + seed}}}}}"
    )
    (path / "training_config.yaml").write_text(dump_config(config))
    lines = [
        {"step": step, "tokens": 100 * step + seed, "ar/loss": 5.0 - step / 10 + seed, "meta/query_accuracy": accuracy}
        for step in range(1, 11)
    ]
    lines.append({"step": 10, "eval/validation_loss": 4.0 + seed, "eval/few_shot/test/fim/accuracy_after": accuracy})
    lines.append({"step": 10, "layers/displacement/layers.0.attention.v_proj": 0.1})
    (path / "logs" / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    by_step = [[accuracy, accuracy + 0.1], [accuracy + 0.1, accuracy + 0.2]]
    setting = {
        "n_way": 5,
        "k_shot": 1,
        "q_query": 5,
        "documents": "any",
        "by_method": {"chance": [0.2, 0.2]},
        "by_step": by_step,
    }
    failed = {**setting, "n_way": 32, "by_method": {}, "by_step": [], "problem": "too few words"}
    for step in (2, 10):
        content = {"step": step, "task_key": "a", "word_split": "test", "readout": "fim", "overrides": []}
        content["settings"] = [setting, failed] if step == 10 else []
        (path / "eval_results" / f"few_shot_step_{step}.json").write_text(json.dumps(content))
    return path


def test_seeds_of_one_experiment_are_grouped_into_a_band(tmp_path: Path) -> None:
    records = [Record.read(make_run(tmp_path / f"run-{seed}", seed)) for seed in (0, 2)]
    other = Record.read(make_run(tmp_path / "other", 0, learner="protonet"))
    groups = group_by_experiment([*records, other])
    assert [(group.name, len(group.records)) for group in groups] == [("run", 2), ("other", 1)]
    tokens, mean, least, most = groups[0].series("ar/loss")
    # interpolated at equal tokens: seed 0 is 5 - tokens / 1000; seed 2 is larger by 2 and shifted by two tokens
    assert (tokens[0], tokens[-1]) == (102, 1000)
    np.testing.assert_allclose(least, 5 - tokens / 1000)
    np.testing.assert_allclose(most, 7 - (tokens - 2) / 1000)
    np.testing.assert_allclose(mean, (least + most) / 2)
    assert groups[0].series("nothing") is None
    # an evaluation is plotted at the tokens of the previous training line
    assert groups[1].series("eval/validation_loss")[0].tolist() == [1000]


def test_differences_between_runs_are_paired_by_task(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 0, learner="anil", accuracy=0.3)]
    (table,) = few_shot_tables(group_by_experiment([Record.read(run) for run in runs]))
    assert (table.title, table.columns) == ("Few-shot: 5-way 1-shot, 5 queries, test words", ["method", "a", "b"])
    cells = {name: values for name, *values in table.rows}
    assert cells["chance"] == ["20.0 ± 0.0", "20.0 ± 0.0"]
    assert cells["adapted, 0 steps"][0].startswith("55.0 ± ")
    assert re.fullmatch(r"35\.0 ± [\d.]+ \(-20\.0 ± 0\.0\)", cells["adapted, 0 steps"][1])


class References(HTMLParser):
    """Collects the addresses that a page refers to, and the captions of its figures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.captions: list[str] = []
        self._path: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._path.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self._path.append("")

    def handle_data(self, data: str) -> None:
        if self._path and self._path[-1] == "figcaption":
            self.captions.append(data)


def test_report_page_is_self_contained(tmp_path: Path) -> None:
    names = ["<b>a", "b"]
    runs = [make_run(tmp_path / names[0], 0), make_run(tmp_path / names[1], 0, learner="anil")]
    path = write_report(group_by_experiment([Record.read(run) for run in runs]), tmp_path / "report")
    page = path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    references = References(page)
    assert references.found == []
    assert "<b>a" not in page
    assert references.captions == [
        "Next-token loss of autoregressive steps",
        "Query accuracy of meta steps, after adaptation",
        "Validation loss, held-out documents",
        "Few-shot accuracy after adaptation, test words, readout fim",
        "5-way 1-shot, 5 queries, test words",
        *(f"{name}: distance that the inner loop moves each layer" for name in names),
    ]
    assert "32-way" not in page


def test_panels_side_by_side_share_their_axes(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 0, learner="anil", accuracy=0.3)]
    sections = {section.title: section for section in run_sections(group_by_experiment([*map(Record.read, runs)]))}
    assert [*sections] == ["Training", "Evaluation during training", "Adaptation to held-out words", "Layers"]
    by_tokens = [panel for section in sections.values() for panel in section.panels if panel.x_label == "tokens"]
    assert {panel.x_range for panel in by_tokens} == {(0.0, 1000.0)}
    first, second = sections["Layers"].panels
    assert first.y_range == second.y_range
    (adaptation,) = sections["Adaptation to held-out words"].panels
    assert [line.name for line in adaptation.lines] == ["a", "b"]
    np.testing.assert_allclose(adaptation.lines[1].y, [35, 45])


def test_missing_or_damaged_run_files_fail(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no training_config.yaml; give the directory of a run"):
        Record.read(tmp_path)
    run = make_run(tmp_path / "run", 0)
    (run / "eval_results" / "few_shot_step_10.json").write_text("{")
    with pytest.raises(ConfigError, match="a file of the run is damaged"):
        Record.read(run)


def test_lines_that_are_not_records_are_skipped_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    before = Record.read(run)
    with (run / "logs" / "metrics.jsonl").open("a") as file:
        file.write('\n5\n{}\n{"step": null}\n{"step": 1')
    after = Record.read(run)
    assert (after.metrics, after.damaged_lines) == (before.metrics, 4)


def change_few_shot(run: Path, name: str = "few_shot_step_10", **changes: Any) -> None:
    """Write the few-shot results of a run with changes, each to the first setting or to the top level."""
    content = json.loads((run / "eval_results" / "few_shot_step_10.json").read_text())
    setting = content["settings"][0]
    for key, value in changes.items():
        (setting if key in setting else content)[key] = value
    (run / "eval_results" / f"{name}.json").write_text(json.dumps({**content, "settings": [setting]}))


@pytest.mark.parametrize(
    "changes",
    [{"task_key": "b"}, {"word_split": "validation"}, {"q_query": 2}, {"documents": "same"}, {"k_shot": 5}],
    ids=str,
)
def test_results_on_different_tasks_are_not_paired(tmp_path: Path, changes: dict[str, Any]) -> None:
    runs = [make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 0, learner="anil", accuracy=0.3)]
    change_few_shot(runs[1], **changes)
    tables = few_shot_tables(group_by_experiment([Record.read(run) for run in runs]))
    assert [table.columns for table in tables] == [["method", "a"], ["method", "b"]]
    assert len({table.title for table in tables}) == 2


def test_results_with_different_options_are_separate_columns(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 0)
    change_few_shot(run, "few_shot_pre_step_10", readout="pre", by_step=[[0.6, 0.7], [0.7, 0.8]])
    change_few_shot(run, "few_shot_topics_step_10", data="topics.jsonl")
    (table,) = few_shot_tables(group_by_experiment([Record.read(run)]))
    assert table.columns == ["method", "a", "a, pre"]
    cells = {name: values for name, *values in table.rows}
    assert cells["adapted, 0 steps"][1].startswith("65.0 ± 9.8 (+10.0 ± ")


def test_seeds_are_cut_to_the_tasks_and_steps_they_share(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run-{seed}", seed) for seed in (0, 1)]
    change_few_shot(runs[1], by_step=[[0.3, 0.4, 0.9]] * 3, by_method={"chance": [0.2] * 3})
    groups = group_by_experiment([Record.read(run) for run in runs])
    (table,) = few_shot_tables(groups)
    assert "Only tasks and steps that all seeds have are shown for run." in table.note
    assert {name: first for name, first in table.rows} == {
        "chance": "20.0 ± 0.0",
        "adapted, 0 steps": "45.0 ± 9.8",
        "adapted, 1 steps": "50.0 ± 9.8",
    }
    (runs[1] / "eval_results" / "few_shot_step_10.json").unlink()
    (runs[1] / "eval_results" / "few_shot_step_2.json").unlink()
    (table,) = few_shot_tables(group_by_experiment([Record.read(run) for run in runs]))
    assert table.columns == ["method", "run (1 of 2 seeds)"]


def test_no_seed_is_counted_twice(tmp_path: Path) -> None:
    names = ("short-0", "short-1", "long-0", "long-1", "x/same", "y/same", "x/once-0", "x/once-1")
    for name in names:
        learner = "protonet" if "once" in name else "anil" if "same" in name else "fomaml"
        make_run(
            tmp_path / name, int(name[-1]) if name[-1].isdigit() else 0, learner, max_steps=9 if "long" in name else 5
        )
    groups = group_by_experiment([Record.read(tmp_path / name) for name in names])
    found = {group.name: [record.name for record in group.records] for group in groups}
    assert found == {
        "short": ["short-0", "short-1"],
        "long": ["long-0", "long-1"],
        "x-same": ["same"],
        "y-same": ["same"],
        "once": ["once-0", "once-1"],
    }
    twice = [Record.read(tmp_path / "short-0"), Record.read(tmp_path / "x" / ".." / "short-0")]
    with pytest.raises(ConfigError, match=r"short-0 is given twice"):
        group_by_experiment(twice)


def test_different_experiments_with_one_run_name_are_distinguished(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "x" / "run", 0), make_run(tmp_path / "y" / "run", 0, learner="anil")]
    assert [group.name for group in group_by_experiment([Record.read(run) for run in runs])] == ["x-run", "y-run"]


def test_run_in_the_working_directory_is_named_and_its_steps_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "here", 0)
    # only meta steps, and a last line of an earlier step
    lines = [{"step": 8, "tokens": 800, "meta/query_loss": 1.0}, {"step": 9, "tokens": 900}, {"step": 4, "tokens": 400}]
    (run / "logs" / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    monkeypatch.chdir(run)
    groups = group_by_experiment([Record.read(Path())])
    assert groups[0].name == "here"
    page = write_report(groups, tmp_path / "report").read_text()
    assert "<td>9</td><td>900</td>" in page
