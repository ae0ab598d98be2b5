"""Runs that were interrupted resume when the same command runs again."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pico_ds.checkpoint.checkpoint_index import Index
from pico_ds.model.huggingface import PicoDecoderHF, PicoDecoderHFConfig
from tests.fomaml_reference import relative_error
from tests.launching import Process, free_port, real, warm
from tests.run_results import assert_bit_identical, deterministic_metrics_of, metrics_of, weights_of
from tests.shared_runs import RESUMABLE, RESUMABLE_STEPS, SharedRuns

STEPS = RESUMABLE_STEPS
#: metrics are averaged over steps before and after a save
WINDOWS = ["monitoring.log_every_n_steps=4"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def arguments(directory: Path, shared_runs: SharedRuns) -> Callable[..., list[str]]:
    return lambda name, *others: shared_runs.arguments(directory, name, *RESUMABLE, *others)


@pytest.fixture
def whole(shared_runs: SharedRuns) -> Path:
    """An uninterrupted run."""
    return shared_runs["resumable"]


def truncated_copy(whole: Path, path: Path, step: int) -> Path:
    """A copy of a run as if it had died after the save of `step`. Only the log has later lines."""
    shutil.copytree(whole, path)
    for checkpoint in (path / "checkpoints").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    for result in (path / "eval_results").glob("step_*.json"):
        if int(result.stem.removeprefix("step_")) > step:
            result.unlink()
    return path


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_resumed_run_is_bit_identical(
    arguments: Callable[..., list[str]], directory: Path, stage: int, precision: str
) -> None:
    settings = [f"training.precision={precision}", "--deepspeed_config", f"ds_configs/zero{stage}.json", *WINDOWS]
    name = f"whole-{stage}"
    warm.torchrun(*arguments(name, *settings))
    resumed = truncated_copy(directory / name, directory / f"resumed-{stage}", step=6)
    output = warm.torchrun(*arguments(resumed.name, *settings))
    assert f"resuming from {resumed}/checkpoints/step_6, the newest one" in output
    assert_bit_identical(resumed, directory / name, STEPS)


def test_run_resumes_at_other_world_sizes_and_stages(arguments: Callable[..., list[str]], directory: Path) -> None:
    """1, 2, 3 and 1 ranks under ZeRO 1, 2, 3 and 0 train on the same rows and tasks, with metrics equal to rounding."""
    path, constant = directory / "changing", directory / "constant"
    for ranks, step, stage in ((1, 4, 1), (2, 6, 2), (3, 9, 3), (1, STEPS, 0)):
        settings = [f"training.max_steps={step}", "--deepspeed_config", f"ds_configs/zero{stage}.json"]
        warm.torchrun(*arguments(path.name, "training.lr_schedule=constant", *settings), ranks=ranks)
    warm.python(*arguments(constant.name, "training.lr_schedule=constant"))
    for got, expected in zip(deterministic_metrics_of(path), deterministic_metrics_of(constant), strict=True):
        assert got.keys() == expected.keys()
        for name in expected:
            assert got[name] == pytest.approx(expected[name], rel=2e-4, abs=1e-6), (name, got["step"])
    assert relative_error(weights_of(path, STEPS), weights_of(constant, STEPS)) <= 1e-6


def test_finished_run_is_not_trained_again(arguments: Callable[..., list[str]], whole: Path, directory: Path) -> None:
    again = truncated_copy(whole, directory / "again", STEPS)
    before = deterministic_metrics_of(again)
    output = warm.python(*arguments("again"))
    assert "has already taken all 12 steps" in output
    assert "after meta-training, step 12" in output
    assert deterministic_metrics_of(again) == before


def test_damaged_checkpoint_is_skipped(arguments: Callable[..., list[str]], whole: Path, directory: Path) -> None:
    damaged = truncated_copy(whole, directory / "damaged", 8)
    shard = damaged / "checkpoints/step_8/training_state/shard_0.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    output = warm.python(*arguments("damaged"))
    assert f"skipped and left unchanged: {shard}: bytes 0 to" in output
    assert f"resuming from {damaged}/checkpoints/step_6, the newest intact one; 1 newer skipped" in output
    assert_bit_identical(damaged, whole, STEPS)
    (replaced,) = (damaged / "checkpoints").glob("step_8.replaced-*")
    assert (replaced / "training_state/shard_0.safetensors").read_bytes() == content


def test_missing_requested_checkpoint_is_an_error(
    arguments: Callable[..., list[str]], whole: Path, directory: Path
) -> None:
    run = truncated_copy(whole, directory / "missing", STEPS)
    output = warm.python(*arguments(run.name, "checkpointing.resume=5"), check=False)
    assert f"error: {run}/checkpoints/step_5: is not a complete checkpoint" in output
    assert "Traceback" not in output


def read_until(process: Process, text: str) -> str:
    """Read the output of a process up to the first line with `text`."""
    output = ""
    assert process.stdout is not None
    for line in process.stdout:
        output += line
        if text in line:
            return output
    raise AssertionError(f"the output never contained {text!r}:\n{output}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_signal_saves_and_exits_with_the_requeue_code(
    arguments: Callable[..., list[str]], directory: Path, number: signal.Signals
) -> None:
    name, long = f"stopped-{number.name}", ["training.max_steps=100000", "training.lr_schedule=constant"]
    saves = ["checkpointing.save_every_n_steps=50000", "checkpointing.requeue_exit_code=85"]
    process = warm.start(*arguments(name, *long, *saves))
    read_until(process, "step 5/")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85
    assert f"{number.name}: stopping after step" in output
    (checkpoint,) = (directory / name / "checkpoints").glob("step_*")
    step = int(checkpoint.name.removeprefix("step_"))
    again = warm.python(*arguments(name, *long, *saves, f"training.max_steps={step + 2}"))
    assert f"resuming from {checkpoint}" in again
    assert [line["step"] for line in metrics_of(directory / name) if "lr" in line] == list(range(1, step + 3))


def test_signal_to_one_rank_stops_all_ranks_after_the_same_step(
    arguments: Callable[..., list[str]], directory: Path
) -> None:
    settings = ["training.max_steps=100000", "checkpointing.save_every_n_steps=50000"]
    process = warm.start_ranks(2, *arguments("one-signal", *settings))
    read_until(process, "step 5/")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-USR1", children[-1]], check=True)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "stopping after step" in output
    (checkpoint,) = (directory / "one-signal/checkpoints").glob("step_*")
    assert {path.name for path in (checkpoint / "training_state").glob("shard_*")} == {
        "shard_0.safetensors",
        "shard_1.safetensors",
    }


def test_ranks_save_when_the_deepspeed_command_dies(arguments: Callable[..., list[str]], directory: Path) -> None:
    """The ranks' parent, the node launcher, lives on. tests/unit/faults covers a parent that dies."""
    settings = ["training.max_steps=100000", "checkpointing.save_every_n_steps=50000"]
    options = ["--num_accelerators", "2", "--master_port", str(free_port())]
    process = real.start_command("deepspeed", *options, *arguments("orphans", *settings))
    read_until(process, "step 5/")
    process.kill()
    output, _ = process.communicate(timeout=30)
    assert "the launcher has died: stopping after step" in output
    warm.python("scripts/checkpoint.py", "verify", str(directory / "orphans"))


def test_evaluation_interrupted_by_a_signal_is_repeated_after_a_resume(
    arguments: Callable[..., list[str]], directory: Path
) -> None:
    process = warm.start(*arguments("evaluating", "evaluation.n_tasks=500"))
    read_until(process, "evaluating step 3")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "the evaluation of step 3 was interrupted" in output
    assert "SIGTERM: stopping after step 3" in output
    assert "evaluating step 3" in warm.python(*arguments("evaluating", "training.max_steps=4"))
    assert (directory / "evaluating/eval_results/step_3.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system with space for one checkpoint."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_full_disk_ends_the_run_without_data_loss(
    arguments: Callable[..., list[str]], whole: Path, small_disk: Path
) -> None:
    command = arguments("full", f"checkpointing.runs_dir={small_disk}")
    output = real.torchrun(*command, check=False)
    assert re.search(r"error: \S+\.partial/\S+: cannot be written \(No space left on device\); free space", output)
    # torchrun prints a traceback itself, without the prefix of a rank
    assert "]: Traceback" not in output
    assert "step_2" in warm.python("scripts/checkpoint.py", "verify", str(small_disk / "full"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert "resuming from" in warm.python(*command)
    weights, expected = (
        load_file(p / f"checkpoints/step_{STEPS}/model.safetensors") for p in (small_disk / "full", whole)
    )
    assert all(torch.allclose(weights[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)


def test_error_names_a_read_only_directory(arguments: Callable[..., list[str]], small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    output = warm.python(*arguments("ro", f"checkpointing.runs_dir={small_disk}/runs"), check=False)
    assert f"checkpointing.runs_dir: cannot write to {small_disk}/runs (Read-only file system)" in output


def test_checkpoint_script_inspects_verifies_and_consolidates(whole: Path, tmp_path: Path) -> None:
    checkpoint, out = whole / f"checkpoints/step_{STEPS}", tmp_path / "weights.safetensors"
    text = warm.python("scripts/checkpoint.py", "inspect", str(checkpoint), "--tensors")
    for part in (
        "step        12 (12 of the optimizer)",
        "29,832 in 21 tensors",
        "1 rank(s), ZeRO stage 1, fp32",
        "shard_0",
    ):
        assert part in text, text
    assert "all files match their hashes" in warm.python("scripts/checkpoint.py", "verify", str(whole))
    assert "29,832 fp32 parameters" in warm.python("scripts/checkpoint.py", "consolidate", str(checkpoint), str(out))
    consolidated, weights = load_file(out), load_file(checkpoint / "model.safetensors")
    assert consolidated.keys() == weights.keys()
    assert all(torch.equal(consolidated[name], weights[name]) for name in weights)
    assert "error: " in warm.python("scripts/checkpoint.py", "verify", str(tmp_path), check=False)


def test_resume_never_runs_code_of_a_checkpoint(
    arguments: Callable[..., list[str]], whole: Path, directory: Path, tmp_path: Path
) -> None:
    planted, trace = truncated_copy(whole, directory / "planted", 6), tmp_path / "trace"
    for name in ("huggingface.py", "attention.py", "modeling.py", "__init__.py"):
        (planted / "checkpoints/step_6" / name).write_text(f"open({str(trace)!r}, 'w')")
    warm.python(*arguments("planted"))
    warm.python("scripts/checkpoint.py", "inspect", str(planted))
    assert not trace.exists()
    assert_bit_identical(planted, whole, STEPS)


def test_retention_follows_the_configuration(arguments: Callable[..., list[str]], directory: Path) -> None:
    keep = ["checkpointing.keep_last_n=1", "checkpointing.keep_every_n_steps=4", "checkpointing.keep_weights=false"]
    warm.python(*arguments("kept", *keep))
    kept = {path.name for path in (directory / "kept/checkpoints").iterdir()}
    assert kept == {"step_4", "step_8", "step_12", "latest"}
    index = json.loads((directory / "kept/checkpoints/step_8/training_state/index.json").read_text())
    assert index["progress"]["step"] == 8


def test_run_resumes_after_its_initial_model_is_removed(arguments: Callable[..., list[str]], directory: Path) -> None:
    """The initial model is evaluated first. Neither a resume nor the final report needs `model.init_from` again."""
    source = directory / "source"
    shape = {"d_model": 24, "n_layers": 2, "attention_n_heads": 4, "attention_n_kv_heads": 2}
    torch.manual_seed(0)
    config = PicoDecoderHFConfig(**shape, activation_hidden_dim=48, max_seq_len=64, vocab_size=300)
    PicoDecoderHF(config).save_pretrained(source)
    command = arguments("begun", f"model.init_from={source}", "checkpointing.save_every_n_steps=2")
    log = warm.python(*command, "training.max_steps=2")
    assert log.index("evaluating step 0") < log.index("evaluating step 2")
    source.rename(directory / "removed")
    # pretend that the checkpoint was saved before the evaluation of step 0
    checkpoint = directory / "begun" / "checkpoints" / "step_2"
    index = Index.read(checkpoint)
    index.callbacks["Evaluation"]["done"].remove(0)
    index.write(checkpoint)
    log = warm.python(*command, "training.max_steps=3")
    assert "warning: the untrained model is missing from the final report: model.init_from: " in log
    assert (directory / "begun" / "checkpoints" / "step_3").exists()
    new_run = [argument.replace("run_name=begun", "run_name=fresh") for argument in command]
    assert "error: model.init_from: " in warm.python(*new_run, check=False)
    assert not (directory / "fresh").exists()
