"""Applies the diffs of docs/extending.md to a copy of the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import REPOSITORY, environment

TRAIN = """
import pico_ds
from transformers import AutoModelForCausalLM

config = pico_ds.load_config("configs/demo.yaml", [
    "data.source=python_reference", "meta.head=cosine", "model.activation=gelu", "checkpointing.run_name=extended",
    "data.tokenizer_vocab_size=600", "model.n_layers=1", "meta.tasks_per_step=1", "smlmt.min_word_freq=20",
    "smlmt.warmup_steps=0", "smlmt.hybrid_ratio=1", "training.max_steps=2", "evaluation.n_tasks=2",
    "evaluation.n_rows=2", "monitoring.wandb.mode=disabled",
])
run = pico_ds.train(config)
path = f"runs/extended/checkpoints/step_{run.step}"
exported = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
print("trained", run.step, run.config.meta.head, exported.config.activation)
"""


def extended_copy(folder: Path) -> None:
    """Copy the package, its configurations and tests to `folder`, and apply every diff of the guide to the copy."""
    for name in ("pico_ds", "configs", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    diffs = re.findall(
        r"^```diff\n(.*?)^```$", (REPOSITORY / "docs" / "extending.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(diffs) == 3
    for diff in diffs:
        process = subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=folder, capture_output=True)
        assert process.returncode == 0, f"update the diffs of docs/extending.md: {process.stderr}"


def test_diffs_apply_to_the_current_code(tmp_path: Path) -> None:
    extended_copy(tmp_path)
    assert '"cosine": CosineHead' in (tmp_path / "pico_ds" / "meta" / "heads.py").read_text()


@pytest.mark.slow
def test_tests_of_the_diffs_pass(tmp_path: Path) -> None:
    # costs 10 CPU seconds
    extended_copy(tmp_path)
    tests = [
        "tests/unit/data/text/test_python_reference.py",
        "tests/numerics/test_learners.py::test_learner_gradient_equals_the_reference[fomaml-cosine]",
    ]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "2 passed" in process.stdout, process.stdout + process.stderr


@pytest.mark.slow
def test_package_with_all_diffs_trains(tmp_path: Path) -> None:
    # costs 10 CPU seconds: one process trains two steps
    extended_copy(tmp_path)
    variables = {"PYTHONPATH": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    process = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=tmp_path,
        env={**environment(), **variables, "PICO_DS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert "trained 2 cosine gelu" in process.stdout, process.stderr
