"""Reading runs, grouping seeds, and the page about them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pico_ds.config import ConfigError, dump_config, parse_config
from pico_ds.reporting.page import few_shot_tables, write_report
from pico_ds.reporting.records import Record, group_by_experiment


def make_run(path: Path, seed: int, learner: str = "fomaml", accuracy: float = 0.5) -> Path:
    (path / "logs").mkdir(parents=True)
    (path / "eval_results").mkdir()
    config = parse_config(f"{{meta: {{learner: {learner}}}, training: {{seed: {seed}, max_steps: {100 + seed}}}}}")
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
        content = {"step": step, "settings": [setting, failed] if step == 10 else []}
        (path / "eval_results" / f"few_shot_step_{step}.json").write_text(json.dumps(content))
    return path


def test_seeds_of_one_experiment_are_a_band(tmp_path: Path) -> None:
    records = [Record.read(make_run(tmp_path / f"run-{seed}", seed)) for seed in (0, 2)]
    other = Record.read(make_run(tmp_path / "other", 0, learner="protonet"))
    groups = group_by_experiment([*records, other])
    assert [(group.name, len(group.records)) for group in groups] == [("run", 2), ("other", 1)]
    tokens, mean, least, most = groups[0].series("ar/loss")
    # at equal tokens: seed 0 is 5 - tokens / 1000 there, seed 2 the same plus 2, two tokens later
    assert (tokens[0], tokens[-1]) == (102, 1000)
    np.testing.assert_allclose(least, 5 - tokens / 1000)
    np.testing.assert_allclose(most, 7 - (tokens - 2) / 1000)
    np.testing.assert_allclose(mean, (least + most) / 2)
    assert groups[0].series("nothing") is None
    # an evaluation stands at the tokens of the line before
    assert groups[1].series("eval/validation_loss")[0].tolist() == [1000]


def test_differences_in_the_tables_are_paired(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", 0), make_run(tmp_path / "b", 0, learner="anil", accuracy=0.3)]
    (table,) = few_shot_tables(group_by_experiment([Record.read(run) for run in runs]))
    assert (table.title, table.columns) == ("Few-shot: 5-way 1-shot", ["a", "b"])
    cells = {row.name: row.cells for row in table.rows}
    assert cells["chance"] == ["20.0 ± 0.0", "20.0 ± 0.0"]
    assert cells["adapted, 0 steps"][0].startswith("55.0 ± ")
    assert re.fullmatch(r"35\.0 ± [\d.]+ \(-20\.0 ± 0\.0\)", cells["adapted, 0 steps"][1])


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "<b>a", 0), make_run(tmp_path / "b", 1)]
    path = write_report(group_by_experiment([Record.read(run) for run in runs]), tmp_path / "report")
    page = path.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<b>a" not in page
    names = {image.stem for image in path.parent.glob("*.png")}
    assert {"language_model_loss", "query_accuracy", "validation_loss", "few_shot_test_fim", "adaptation"} <= names
    assert page.count("data:image/png") == len(names)
    assert "32-way" not in page


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no training_config.yaml; give the directory of a run"):
        Record.read(tmp_path)
    run = make_run(tmp_path / "run", 0)
    (run / "logs" / "metrics.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="a file of the run is damaged"):
        Record.read(run)
