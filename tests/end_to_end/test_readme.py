"""Runs every command of the README, with fewer steps, other paths and fewer ranks."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import write_text_corpus
from tests.launching import REPOSITORY, free_port, real

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.strip().splitlines()
]
#: few evaluation tasks, appended to every command that trains
FEW_TASKS = ["evaluation.n_tasks=2", "evaluation.n_rows=4"]
#: two steps, appended to training commands without a number of steps
TWO_STEPS = ["training.max_steps=2", "smlmt.warmup_steps=1", "meta.tasks_per_step=2", "training.global_batch_size=2"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a corpus. Runs are written here."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "corpus").mkdir()
    write_text_corpus(directory / "corpus" / "a.jsonl", 200)
    return directory


def adapt(command: str, directory: Path) -> list[str]:
    """The words of the command, shortened, on at most two CPU ranks and with paths of the test."""
    command = command.replace("corpus/*.jsonl", str(directory / "corpus" / "*.jsonl"))
    command = re.sub(r"\bruns/", f"{directory}/runs/", command)
    command = command.replace("HOST:29500", f"127.0.0.1:{free_port()}").replace("--nnodes 4", "--nnodes 1")
    # a dry run needs only one rank
    ranks = 1 if "pico-maml-1b" in command else 2
    command = re.sub(r"--(num_gpus|nproc_per_node) 8", rf"--\1 {ranks}", command)
    # hundreds of steps become the same number of single steps
    command = re.sub(r"(max_steps=|save_every_n_steps=|step_)(\d)00\b", r"\1\2", command)
    # TWO_STEPS shortens the demo to two steps
    command = command.replace("step_8", "step_2")
    words = shlex.split(command)
    if "=" in words[0]:
        words.insert(0, "env")
    for launcher in ("deepspeed", "torchrun"):
        if launcher in words and "--rdzv_backend" not in words:
            after = words.index(launcher) + 1
            words[after:after] = ["--master_port", str(free_port())]
    if "scripts/evaluate.py" in words:
        return [*words[:4], "--shapes", "5x1", "--queries", "1", "--tasks", "2", "--steps", "1"]
    if words[:2] == ["bash", "scripts/run_tests.sh"]:
        # this test is part of the test command, so it only collects tests
        return [*words, "--collect-only", "-q", "tests/unit/config"]
    if "configs/pico-maml-1b.yaml" in words:
        return words if "--dry-run" in words else [*words, "--dry-run"]
    if "scripts/train.py" in words or "scripts/quickstart.sh" in words:
        small_corpus = (
            ["smlmt.min_word_freq=20", "data.tokenizer_vocab_size=400"] if "data.source=files" in words else []
        )
        short = FEW_TASKS if any("max_steps" in word for word in words) else [*FEW_TASKS, *TWO_STEPS]
        return [*words, *short, *small_corpus, f"checkpointing.runs_dir={directory}/runs"]
    return words


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("source ")])
def test_readme_command_runs(command: str, directory: Path) -> None:
    real.run(*adapt(command, directory), timeout_seconds=280)


def test_readme_starts_with_quickstart_and_tests() -> None:
    assert COMMANDS[:2] == ["bash scripts/quickstart.sh", "bash scripts/run_tests.sh"]
    assert "bash scripts/run_tests.sh" in (REPOSITORY / ".ci" / "run").read_text()


def test_linked_files_exist() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / name).exists(), name
