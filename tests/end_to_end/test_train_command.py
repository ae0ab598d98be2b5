"""scripts/train.py: files of a run, errors, and failures that must not end a run."""

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pico_ds.config import load_config
from tests.conftest import write_text_corpus
from tests.launching import REPOSITORY, environment, warm
from tests.run_results import TINY, deterministic_metrics_of, metrics_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_corpus(tmp_path_factory.mktemp("train") / "corpus.jsonl")


@pytest.fixture(scope="module")
def train(corpus: Path) -> Callable[..., str]:
    def command(*others: str, **options: object) -> str:
        paths = [f"data.paths=[{corpus}]", f"checkpointing.runs_dir={corpus.parent}"]
        return warm.python("scripts/train.py", "--config", TINY, *paths, *others, **options)

    return command


@pytest.fixture(scope="module")
def finished(train: Callable[..., str], corpus: Path) -> tuple[Path, str]:
    output = train(
        "checkpointing.run_name=finished",
        "checkpointing.save_every_n_steps=4",
        "learning_dynamics.log_every_n_steps=1",
        "monitoring.wandb.mode=auto",
        "evaluation.readouts=[fim, pre, mean]",
        "evaluation.every_n_steps=3",
    )
    return corpus.parent / "finished", output


def test_run_directory_contains_the_documented_files(finished: tuple[Path, str]) -> None:
    path, _ = finished
    config = load_config(path / "training_config.yaml")
    assert config.model.vocab_size == 403
    assert config.checkpointing.run_name == "finished"
    assert {child.name for child in (path / "checkpoints").iterdir()} == {"step_4", "step_6", "latest"}
    assert (path / "checkpoints/latest").read_text() == "step_6\n"
    assert {child.name for child in (path / "eval_results").iterdir()} == {f"step_{s}.json" for s in (0, 2, 3, 6)}
    log = (path / "logs/train.log").read_text()
    for text in ("pico_ds: config tiny.yaml, zero1.json, 1 rank(s) on cpu", "step 6/6", "after meta-training, step 6"):
        assert text in log
    environment = json.loads((path / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert environment["deepspeed_config"]["zero_optimization"]["stage"] == 1
    assert set(environment["versions"]) >= {"pico_ds", "torch", "deepspeed", "transformers"}
    result = json.loads((path / "eval_results/step_6.json").read_text())
    assert set(result["few_shot"]) == {"fim", "pre", "mean"}
    assert len(result["few_shot"]["fim"]["by_step"][-1]) == 3
    assert result["validation_loss"] < 7


def test_wandb_is_offline_without_a_key(finished: tuple[Path, str]) -> None:
    path, output = finished
    assert "wandb: offline" in output
    assert list((path / "logs/wandb").glob("offline-run-*/*.wandb"))


def test_final_report_lists_results_files_and_next_commands(finished: tuple[Path, str]) -> None:
    path, output = finished
    for text in ("chance", "untrained", "after AR warm-up", "after meta-training", "Files:", str(path), "Next:"):
        assert text in output
    assert "config tiny.yaml, zero1.json, 1 rank(s) on cpu, fp32" in output
    assert "first step done" in output


def test_layer_norms_and_displacements_are_logged(finished: tuple[Path, str]) -> None:
    lines = [line for line in metrics_of(finished[0]) if "lr" in line]
    names = {f"layers.{layer}.{part}" for layer in range(2) for part in ("attention.v_proj", "swiglu.w_2")}
    for line in lines:
        assert all(line[f"layers/weight_norm/{name}"] > 0 for name in names)
        displacements = [line.get(f"layers/displacement/{name}") for name in names]
        assert all(d > 0 for d in displacements) if "meta/query_loss_after" in line else not any(displacements)
    weights = load_file(finished[0] / "checkpoints/step_4/model.safetensors")
    name = "layers.1.swiglu.w_2"
    # the norms of a step are those of the weights before the step
    assert lines[4][f"layers/weight_norm/{name}"] == pytest.approx(weights[f"{name}.weight"].norm().item(), rel=1e-5)


def test_weights_load_in_transformers_without_pico_ds(finished: tuple[Path, str]) -> None:
    """In a process that cannot import pico_ds, started in another directory."""
    checkpoint = finished[0] / "checkpoints/step_6"
    code = f"""
        import sys
        sys.modules["pico_ds"] = None
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model = AutoModelForCausalLM.from_pretrained({str(checkpoint)!r}, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained({str(checkpoint)!r})
        inputs = tokenizer("The cat sees the", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        print(tokenizer.decode(model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]))
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=checkpoint.parent,
        env={**environment(), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "The cat sees the" in process.stdout


def test_run_is_never_overwritten(finished: tuple[Path, str], train: Callable[..., str]) -> None:
    path, _ = finished
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    output = train("checkpointing.run_name=finished", "checkpointing.resume=never", check=False)
    assert "already contains a run, which is never overwritten" in output
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_unnamed_runs_are_numbered(train: Callable[..., str], corpus: Path) -> None:
    quick = ["training.max_steps=2", "evaluation.n_tasks=0", "evaluation.n_rows=0"]
    train(*quick)
    train(*quick)
    assert (corpus.parent / "tiny-001/checkpoints/step_2").is_dir()
    assert (corpus.parent / "tiny-002/checkpoints/step_2").is_dir()


def test_bf16_run_with_a_linear_head_saves_its_parameters(train: Callable[..., str], corpus: Path) -> None:
    train(
        "checkpointing.run_name=variant",
        "training.precision=bf16",
        "meta.head=linear",
        "smlmt.context=sentence",
        "smlmt.readout=mask",
        "training.lr_schedule=constant",
        "--deepspeed_config",
        "ds_configs/zero2.json",
    )
    checkpoint = corpus.parent / "variant/checkpoints/step_6"
    weights = load_file(checkpoint / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert set(load_file(checkpoint / "meta_parameters.safetensors")) == {"head.weight", "head.bias"}


def test_hybrid_ratio_of_zero_trains_without_tasks(train: Callable[..., str], corpus: Path) -> None:
    train("checkpointing.run_name=ar", "smlmt.hybrid_ratio=0", "evaluation.n_tasks=0")
    lines = [line for line in metrics_of(corpus.parent / "ar") if "lr" in line]
    assert len(lines) == 6
    assert all("ar/loss" in line and "meta/query_loss_after" not in line for line in lines)


def test_diverged_run_skips_steps_and_ends_with_an_error(train: Callable[..., str], corpus: Path) -> None:
    output = train(
        "checkpointing.run_name=diverged",
        "training.lr=1e9",
        "training.max_steps=30",
        "training.lr_warmup_steps=0",
        "training.max_consecutive_skipped_steps=3",
        "smlmt.hybrid_ratio=0",
        check=False,
    )
    assert "error: 3 outer steps in a row" in output
    assert "Lower training.lr" in output
    assert "Traceback" not in output
    assert output.count("skipped: the loss or gradient is not finite") >= 2
    assert max(line["skipped_steps"] for line in metrics_of(corpus.parent / "diverged")) >= 2


def test_unreachable_wandb_does_not_stop_training(train: Callable[..., str], corpus: Path) -> None:
    output = train(
        "checkpointing.run_name=unreachable",
        "monitoring.wandb.mode=online",
        "evaluation.n_tasks=0",
        WANDB_API_KEY="0123456789" * 4,
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_INIT_TIMEOUT="2",
    )
    assert "step 6/6" in output
    assert (corpus.parent / "unreachable/checkpoints/step_6").is_dir()
    assert "0123456789" * 4 not in output


def test_dot_env_is_read_and_never_logged(train: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    secret = "hf_averysecrettoken"
    (tmp_path / ".env").write_text(f"HF_TOKEN={secret}\nPICO_DS_CACHE={tmp_path / 'cache'}\n")
    output = warm.python(
        str(REPOSITORY / "scripts/train.py"),
        *("--config", str(REPOSITORY / TINY), f"data.paths=[{corpus}]"),
        directory=tmp_path,
        PICO_DS_CACHE=None,
    )
    assert list((tmp_path / "cache").glob("corpus-*")), "PICO_DS_CACHE of .env is not used"
    assert secret not in output
    for file in (tmp_path / "runs").rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["smlmt.n_wya=3"], "smlmt.n_wya: unknown key; did you mean smlmt.n_way?"),
        (["smlmt.n_way=500"], "smlmt.n_way: got 500, but only"),
        (["model.vocab_size=300"], "model.vocab_size: got 300, but the tokenizer has 403 entries"),
        (["training.precision=bf16", "--deepspeed_config", "ds_configs/zero0.json"], "use stage 1"),
        (["data.paths=[nowhere.txt]"], "no file matches 'nowhere.txt'"),
        (["--world-size", "8"], "--world-size requires --dry-run"),
        (["--help-keys", "mata"], "'mata' is not a section of the configuration; the sections are model, data"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_mistake_is_one_clear_line(train: Callable[..., str], arguments: list[str], expected: str) -> None:
    output = train(*arguments, check=False)
    assert expected in output
    assert "Traceback" not in output


def test_help_keys_lists_the_keys_of_a_section(train: Callable[..., str]) -> None:
    output = train("--help-keys", "meta")
    assert "meta.inner_lr  [number" in output
    assert "training.lr" not in output


@pytest.mark.parametrize("world_size", [1, 8, 64])
def test_dry_run_shows_the_plan_of_the_1b_config(world_size: int) -> None:
    config = ["--config", "configs/pico-maml-1b.yaml", "--deepspeed_config", "ds_configs/zero2.json"]
    output = warm.python("scripts/train.py", *config, "--dry-run", "--world-size", str(world_size))
    assert "parameters        1,057,548,288" in output
    assert f"ranks             {world_size}, ZeRO stage 2" in output
    assert "n_way: 32" in output
    for part in ("fast weights, fp32", "master weights", "AdamW moments", "activations", "AR step", "meta step"):
        assert part in output
    assert ("all-gather of the updated weights" in output) == (world_size > 1)


def test_dry_run_uses_the_vocabulary_of_the_corpus(train: Callable[..., str], corpus: Path) -> None:
    before = set(corpus.parent.iterdir())
    output = train("--dry-run", "meta.adapt=.*[kqv]_proj.*")
    assert "parameters        " in output
    assert "adapt: .*[kqv]_proj.*" in output
    assert set(corpus.parent.iterdir()) == before


def test_failed_start_leaves_no_run_directory(train: Callable[..., str], corpus: Path) -> None:
    runs = corpus.parent / "failed-starts"
    for names in ([], ["checkpointing.run_name=new"]):
        output = train(f"checkpointing.runs_dir={runs}", "checkpointing.resume=5", *names, check=False)
        assert "is not a complete checkpoint" in output
        assert list(runs.iterdir()) == []


def test_ctrl_c_saves_the_run(corpus: Path) -> None:
    paths = [f"data.paths=[{corpus}]", f"checkpointing.runs_dir={corpus.parent}", "checkpointing.run_name=interrupted"]
    process = warm.start("scripts/train.py", "--config", TINY, *paths, "training.max_steps=100000")
    assert process.stdout is not None
    for line in process.stdout:
        if "step 5/" in line:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "press Ctrl-C again to stop at once" in output
    assert "SIGINT: stopping after step" in output
    assert "Traceback" not in output
    (checkpoint,) = (corpus.parent / "interrupted" / "checkpoints").glob("step_*")
    assert f"saved {checkpoint}" in output


def test_batched_tasks_train_the_same_run(train: Callable[..., str], corpus: Path, finished: tuple[Path, str]) -> None:
    """All metrics, including those by layer, are equal up to rounding."""
    settings = ["learning_dynamics.log_every_n_steps=1", "evaluation.n_tasks=0", "evaluation.n_rows=0"]
    train("checkpointing.run_name=batched", "meta.tasks_per_batch=3", *settings)
    got, wanted = (
        [line for line in deterministic_metrics_of(path) if "lr" in line]
        for path in (corpus.parent / "batched", finished[0])
    )
    assert any("meta/query_loss" in line for line in got)
    for got_line, wanted_line in zip(got, wanted, strict=True):
        assert got_line.keys() == wanted_line.keys()
        for name, value in wanted_line.items():
            assert got_line[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_compiled_bf16_run_writes_a_profile(train: Callable[..., str], corpus: Path) -> None:
    """These settings are the defaults on a GPU."""
    output = train(
        "checkpointing.run_name=compiled",
        "model.n_layers=1",
        "training.global_batch_size=4",
        "training.compile=model",
        "training.precision=bf16",
        "training.max_steps=4",
        "monitoring.profile_steps=[3, 4]",
        "evaluation.n_tasks=0",
        "evaluation.n_rows=0",
    )
    assert "attention of 32 tokens: sdpa_flash (model.attention: auto)" in output
    assert "compiled for [" in output
    logs = corpus.parent / "compiled" / "logs"
    assert f"profile of steps 3 to 4 written to {logs}/trace_rank_0.json.gz" in output
    assert (logs / "trace_rank_0.json.gz").stat().st_size > 1000
    lines = metrics_of(corpus.parent / "compiled")
    assert all(line["data_wait_fraction"] >= 0 for line in lines if "lr" in line)
