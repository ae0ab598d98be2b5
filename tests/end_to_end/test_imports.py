"""Modules that commands must not import: imports cost every rank seconds of CPU time before the first step."""

from pathlib import Path

import pytest

from tests.launching import real
from tests.shared_runs import SharedRuns

SCRIPT = "tests/end_to_end/import_listing_train.py"
#: libraries for evaluation, reports and other data formats
NEVER = {"datasets", "wandb", "sklearn", "scipy.stats", "plotly", "pyarrow", "tensorboard", "lm_eval"}
#: imported in the background, to write a checkpoint
FOR_CHECKPOINTS = {"transformers"}
#: the compiler, which DeepSpeed imports for an optimizer that is not used here
COMPILER = {"torch._inductor.compile_fx"}
ANYTHING_SLOW = {"torch", "numpy", "deepspeed", "pydantic", "rich"}


def modules(directory: Path, name: str) -> set[str]:
    return set((directory / name).read_text().splitlines())


def test_help_imports_no_slow_library(tmp_path: Path) -> None:
    assert "usage" in real.python(SCRIPT, "--help", IMPORTS_DIRECTORY=str(tmp_path))
    found = modules(tmp_path, "end.txt")
    assert not found & (NEVER | FOR_CHECKPOINTS | COMPILER | ANYTHING_SLOW)


def test_dry_run_imports_only_what_it_needs(tmp_path: Path) -> None:
    arguments = ["--config", "configs/pico-maml-1b.yaml", "--dry-run"]
    real.python(SCRIPT, *arguments, IMPORTS_DIRECTORY=str(tmp_path))
    found = modules(tmp_path, "end.txt")
    assert "torch" in found
    assert not found & (NEVER | FOR_CHECKPOINTS | COMPILER)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, shared_runs: SharedRuns) -> Path:
    directory = tmp_path_factory.mktemp("imports")
    real.python(*shared_runs.arguments(directory, "plain", script=SCRIPT), IMPORTS_DIRECTORY=str(directory))
    return directory


def test_training_imports_libraries_only_when_needed(plain: Path) -> None:
    first_step, end = modules(plain, "first_step.txt"), modules(plain, "end.txt")
    assert "deepspeed" in first_step
    assert not first_step & (NEVER | FOR_CHECKPOINTS | COMPILER)
    assert "transformers" in end
    assert not end & NEVER
