import json
from pathlib import Path

import numpy as np
import pytest

from pico_ds.config import ConfigError, RunConfig
from pico_ds.evaluation.evaluator import EvaluationResult, task_key
from pico_ds.evaluation.few_shot import Estimate, FewShotResult
from pico_ds.evaluation.few_shot_tables import percent_difference_by_seed
from pico_ds.evaluation.run_comparison import paired_differences, read_entry


def make_run(path: Path, accuracies: list[float], step: int = 7, key: str = "tasks", readout: str = "fim") -> str:
    few_shot = {readout: FewShotResult([accuracies, [0.0] * len(accuracies), [value + 0.1 for value in accuracies]])}
    EvaluationResult(step, 3.5, few_shot, key).write(path / "eval_results")
    return str(path)


def test_estimate_matches_a_hand_calculation() -> None:
    estimate = Estimate.of([0.0, 1.0, 0.0, 1.0])
    assert estimate.mean == 0.5
    assert estimate.half_width == pytest.approx(1.96 * np.sqrt(1 / 3) / 2)
    assert Estimate.of([1.0]).half_width == float("inf")


def test_differences_are_paired_by_task(tmp_path: Path) -> None:
    a = read_entry(make_run(tmp_path / "a", [0.5, 0.9, 0.1]))
    b = read_entry(make_run(tmp_path / "b", [0.4, 0.8, 0.0]))
    before, after = paired_differences(a, b)
    assert before.mean == pytest.approx(0.1)
    # the accuracies vary between tasks, the paired differences do not
    assert before.half_width == pytest.approx(0.0, abs=1e-9)
    assert after.mean == pytest.approx(0.1)


def test_read_entry_uses_the_last_evaluation(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [0.1, 0.1], step=9)
    make_run(tmp_path / "a", [0.3, 0.3], step=10)
    entry = read_entry(str(tmp_path / "a"))
    assert (entry.step, entry.few_shot.before) == (10, [0.3, 0.3])


def test_runs_with_different_tasks_or_missing_evaluations_fail(tmp_path: Path) -> None:
    a = read_entry(make_run(tmp_path / "a", [0.5, 0.9]))
    with pytest.raises(ConfigError, match="different tasks"):
        paired_differences(a, read_entry(make_run(tmp_path / "b", [0.5, 0.9], key="others")))
    with pytest.raises(ConfigError, match=r"different tasks \(2 and 3\)"):
        paired_differences(a, read_entry(make_run(tmp_path / "c", [0.5, 0.9, 0.4])))
    with pytest.raises(ConfigError, match="has no eval_results"):
        read_entry(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"a:pre: choose one of the evaluated readouts.*a:fim"):
        read_entry(f"{tmp_path / 'a'}:pre")


def test_runs_with_different_adaptation_steps_or_no_few_shot_accuracy_fail(tmp_path: Path) -> None:
    a = read_entry(make_run(tmp_path / "a", [0.5, 0.9]))
    shorter = EvaluationResult(7, 3.5, {"fim": FewShotResult(a.few_shot.by_step[:2])}, "tasks")
    shorter.write(tmp_path / "b" / "eval_results")
    with pytest.raises(ConfigError, match=r"were adapted for 2 and 1 steps; .*evaluation.adaptation_steps"):
        paired_differences(a, read_entry(str(tmp_path / "b")))
    EvaluationResult(7, 3.5, {}, "tasks").write(tmp_path / "c" / "eval_results")
    for text in (str(tmp_path / "c"), f"{tmp_path / 'c'}:fim"):
        with pytest.raises(ConfigError, match=r"c: the evaluation of step 7 has no few-shot accuracy"):
            read_entry(text)


def test_single_task_has_no_interval(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [0.5])
    written = (tmp_path / "a" / "eval_results" / "step_7.json").read_text()
    (summary, *_) = json.loads(written, parse_constant=pytest.fail)["few_shot_summary"]["fim"]
    assert summary == {"steps": 0, "mean": 0.5, "half_width": None}
    assert Estimate.of([0.5]).percent() == "50.0"
    assert Estimate.of([0.5, 0.5]).percent(signed=True) == "+50.0 ± 0.0"


def test_several_seeds_add_an_interval_over_seeds() -> None:
    a = np.array([[0.50, 0.70], [0.40, 0.60], [0.45, 0.65]])
    b = a - np.array([[0.030], [0.016], [0.020]])
    # differences are equal for all tasks but vary between the three seeds, for which t is 4.30
    assert percent_difference_by_seed(a, b) == "+2.2 ± 0.0 (± 1.8)"
    assert percent_difference_by_seed(a[:1], b[:1]) == "+3.0 ± 0.0"
    assert Estimate.of_seeds([0.013, 0.026, 0.010]).percent() == "1.6 ± 2.1"


def test_task_key_depends_on_the_tasks_but_not_on_training_or_readout() -> None:
    config = RunConfig()

    def key(section: str, **changes: object) -> str:
        changed = getattr(config, section).model_copy(update=changes)
        return task_key(config.model_copy(update={section: changed}))

    same = task_key(config)
    assert key("smlmt", hybrid_ratio=0.0, warmup_steps=9, readout="pre") == same
    assert key("training", seed=5) == same
    assert key("smlmt", n_way=6) != same
    assert key("data", split_seed=1) != same
    assert key("evaluation", word_split="test") != same
