"""Tests the files of few-shot results."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pico_ds.config import RunConfig
from pico_ds.evaluation.evaluator import grid_key
from pico_ds.evaluation.few_shot_grid import Setting, SettingResult, grid_name, write_grid
from pico_ds.tasks.task_shape import TaskShape


def description(**changes: Any) -> dict[str, Any]:
    config = RunConfig()
    common = {"step": 6, "readout": "fim", "word_split": "validation", "overrides": []}
    return {**common, "task_key": grid_key(config, "validation"), **changes}


def test_different_options_give_different_file_names() -> None:
    names = [
        grid_name(description(**changes), RunConfig())
        for changes in (
            {},
            {"word_split": "test"},
            {"readout": "pre"},
            {"word_split": "test", "readout": "pre"},
            {"overrides": ["evaluation.head=prototype"]},
            {"overrides": ["meta.inner_lr=0.1", "evaluation.head=prototype"]},
            {"overrides": ["data.paths=[a/b.txt]"]},
        )
    ]
    assert names[:4] == ["few_shot", "few_shot_test", "few_shot_pre", "few_shot_test_pre"]
    assert names[5] == "few_shot_evaluation.head=prototype_meta.inner_lr=0.1"
    assert len({*names}) == len(names)
    assert "/" not in names[-1]
    assert grid_name({**description(readout="mean"), "data": "own/topics.jsonl"}, RunConfig()) == "few_shot_topics_mean"


def test_new_settings_are_added_to_results_of_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "few_shot_step_6.json"

    def write(documents: Any, accuracy: float, since: float = 0.0, **changes: Any) -> dict[str, float]:
        result = SettingResult({"chance": [0.2]}, [[accuracy]])
        write_grid(path, {Setting(TaskShape(5, 1, 5), documents): result}, description(**changes), since)
        content = json.loads(path.read_text(), parse_constant=pytest.fail)
        return {entry["documents"]: entry["by_step"][0][0] for entry in content["settings"]}

    assert write("any", 0.5) == {"any": 0.5}
    assert write("same", 0.6) == {"any": 0.5, "same": 0.6}
    assert write("any", 0.7) == {"any": 0.7, "same": 0.6}
    assert write("same", 0.8, readout="pre") == {"same": 0.8}, "results of another readout are discarded"
    os.utime(path, (100, 100))
    assert write("any", 0.9, since=200, readout="pre") == {"any": 0.9}, "results older than the weights are discarded"


def test_grid_key_depends_on_the_word_split_but_not_on_the_task_shape() -> None:
    config = RunConfig()
    other = config.model_copy(update={"smlmt": config.smlmt.model_copy(update={"n_way": 9, "q_query": 2})})
    assert grid_key(config, "test") != grid_key(config, "validation")
    assert grid_key(config, "test") == grid_key(other, "test"), "the shape is recorded with each setting"
