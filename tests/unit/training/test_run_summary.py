"""The report at the end of a run: results table and suggested commands."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pico_ds.config import RunConfig, parse_config
from pico_ds.console import make_console
from pico_ds.evaluation.evaluator import EvaluationResult
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.training.run_context import RunContext
from pico_ds.training.run_summary import print_report
from pico_ds.training.training_state import TrainingState


def printed(capsys: pytest.CaptureFixture[str], config: RunConfig, run: str, world_size: int = 1, step: int = 0) -> str:
    result = EvaluationResult(0, 1.0, {}, "")
    context = SimpleNamespace(
        config=config,
        config_name="demo.yaml",
        run=RunDirectory(Path(run)),
        process=SimpleNamespace(world_size=world_size),
        console=make_console(),
    )
    print_report(cast(RunContext, context), TrainingState(), {step: result}, 1.0)
    return capsys.readouterr().out


def test_commands_are_quoted_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would interpret the brackets as markup, and a shell would split at the space."""
    output = printed(capsys, RunConfig(), "runs/my run[/x]")
    assert "'evaluation.readouts=[pre, fimpre, fim]'" in output
    (hint,) = [line for line in output.splitlines() if "compare.py" in line]
    assert "runs/my run[/x]" in shlex.split(hint)


def test_first_row_names_the_source_of_the_initial_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert "untrained" in printed(capsys, RunConfig(), "runs/a")
    initialized = RunConfig().model_copy(
        update={"model": RunConfig().model.model_copy(update={"init_from": "somewhere"})}
    )
    output = printed(capsys, initialized, "runs/a")
    assert "initial weights" in output
    assert "untrained" not in output


def test_commands_use_the_resolved_configuration_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, RunConfig(), "runs/a b").splitlines()
    (hint,) = [line for line in lines if "another seed" in line]
    command = shlex.split(hint)[2:]
    assert command == ["python", "scripts/train.py", "--config", "runs/a b/training_config.yaml", "training.seed=1"]
    assert "torchrun" in "".join(lines)
    assert "torchrun" not in printed(capsys, RunConfig(), "runs/a", world_size=2)
    named = RunConfig().model_copy(
        update={"checkpointing": RunConfig().checkpointing.model_copy(update={"run_name": "mine"})}
    )
    assert "checkpointing.run_name=null training.seed=1" in printed(capsys, named, "runs/mine")


@pytest.mark.parametrize(("warmup_steps", "name"), [(10, "after meta-training"), (400, "after AR training")])
def test_last_row_says_whether_the_run_had_meta_steps(
    capsys: pytest.CaptureFixture[str], warmup_steps: int, name: str
) -> None:
    config = parse_config("", [f"smlmt.warmup_steps={warmup_steps}", "training.max_steps=20"])
    assert f"{name}, step 20" in printed(capsys, config, "runs/a", step=20)
