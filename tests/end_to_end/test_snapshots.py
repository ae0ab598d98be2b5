"""Snapshots of learning dynamics do not depend on stage and ranks, and do not change training."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from tests.fomaml_reference import relative_error
from tests.launching import warm
from tests.run_results import assert_bit_identical
from tests.shared_runs import SharedRuns

SPLITS, KINDS = ("train", "val"), ("activations", "weights", "gradients")
LAYERS = [f"layers.{i}.{end}" for i in range(2) for end in ("attention.v_proj", "attention.o_proj", "swiglu.w_2")]


SAVES = ["learning_dynamics.save_every_n_steps=2", "checkpointing.save_every_n_steps=4"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture(scope="module")
def arguments(directory: Path, shared_runs: SharedRuns) -> Callable[..., list[str]]:
    return lambda name, *others: shared_runs.arguments(directory, name, *others)


@pytest.fixture(scope="module")
def one_rank(directory: Path, arguments: Callable[..., list[str]]) -> Path:
    warm.python(*arguments("one", *SAVES))
    return directory / "one"


def snapshot(run_directory: Path, step: int) -> Path:
    return run_directory / "checkpoints" / f"step_{step}" / "learning_dynamics"


def test_snapshots_are_written_at_steps_with_and_without_a_checkpoint(one_rank: Path) -> None:
    for step in (0, 2, 4, 6):
        names = {f"{split}_{kind}.safetensors" for split in SPLITS for kind in KINDS}
        found = {path.name for path in snapshot(one_rank, step).iterdir()}
        assert found == names | {"train_data", "val_data", "meta_dynamics.safetensors"}
        assert (one_rank / f"checkpoints/step_{step}/model.safetensors").exists() == (step in (4, 6))
    assert not list((one_rank / "checkpoints").glob(".*"))


@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_write_the_same_snapshots_as_one(
    stage: int, arguments: Callable[..., list[str]], directory: Path, one_rank: Path
) -> None:
    name = f"two-zero{stage}"
    warm.torchrun(*arguments(name, *SAVES, "--deepspeed_config", f"ds_configs/zero{stage}.json"))
    for step in (0, 2, 4, 6):
        for path in snapshot(one_rank, step).glob("*.safetensors"):
            got, wanted = load_file(snapshot(directory / name, step) / path.name), load_file(path)
            assert got.keys() == wanted.keys()
            assert all(torch.equal(got[name].isnan(), wanted[name].isnan()) for name in wanted)
            finite = [{name: values.nan_to_num() for name, values in tensors.items()} for tensors in (got, wanted)]
            # from step 1 on the weights differ by rounding, and this difference grows
            assert relative_error(*finite) < (1e-6 if step == 0 else 1e-3), (step, path.name)
        for split in SPLITS:
            rows = [
                datasets.load_from_disk(snapshot(run, step) / f"{split}_data") for run in (directory / name, one_rank)
            ]
            assert rows[0].to_dict() == rows[1].to_dict()


def test_training_is_bit_identical_with_and_without_snapshots(shared_runs: SharedRuns, one_rank: Path) -> None:
    assert_bit_identical(one_rank, shared_runs["plain"], step=6)


def test_snapshot_has_the_weights_of_its_step(one_rank: Path) -> None:
    """Snapshots are written in the background while training changes the weights."""
    saved = load_file(one_rank / "checkpoints/step_4/model.safetensors")
    weights = load_file(snapshot(one_rank, 4) / "train_weights.safetensors")
    assert set(weights) == set(LAYERS)
    assert all(torch.equal(weights[path], saved[f"{path}.weight"]) for path in LAYERS)


def test_headers_contain_units_and_shapes(one_rank: Path) -> None:
    with safe_open(snapshot(one_rank, 2) / "val_gradients.safetensors", "pt") as file:
        header = file.metadata()
    assert header["format"] == "pico_ds.learning_dynamics"
    assert (header["step"], header["split"], header["kind"]) == ("2", "val", "gradients")
    assert "nats per token" in header["unit"]
    with safe_open(snapshot(one_rank, 2) / "meta_dynamics.safetensors", "pt") as file:
        assert "[tasks, moments]" in file.metadata()["displacement.<layer>"]
        assert tuple(file.get_tensor("query_loss").shape) == (4, 6)
        displacement = file.get_tensor("displacement.layers.0.attention.o_proj")
    assert displacement[:, 0].eq(0).all()
    assert displacement.diff(dim=1).gt(0).all(), "an inner step did not change the weights"


def test_batches_are_datasets_with_text(one_rank: Path) -> None:
    found = datasets.load_from_disk(snapshot(one_rank, 0) / "val_data")
    assert len(found) == 8
    assert len(found[0]["input_ids"]) == 33
    assert "the" in found[0]["text"]


def test_missing_snapshot_is_repeated_after_a_resume(
    arguments: Callable[..., list[str]], directory: Path, one_rank: Path
) -> None:
    run = directory / "longer"
    shutil.copytree(one_rank, run)
    output = warm.python(*arguments(run.name, *SAVES, "training.max_steps=8"))
    assert "snapshot" in output
    missing = snapshot(run, 8)
    expected = load_file(missing / "val_activations.safetensors")
    missing.rename(run / "moved")
    warm.python(*arguments(run.name, *SAVES, "training.max_steps=10"))
    assert relative_error(load_file(missing / "val_activations.safetensors"), expected) == 0
    assert snapshot(run, 10).exists()


def test_slow_snapshot_does_not_block_checkpoint_removal(directory: Path, shared_runs: SharedRuns) -> None:
    """Checkpoint 4 is saved and checkpoint 2 removed before the snapshot of step 2 is written."""
    saves = ["learning_dynamics.save_every_n_steps=2", "checkpointing.save_every_n_steps=2"]
    settings = ["training.max_steps=4", "learning_dynamics.n_tasks=1", *saves, "checkpointing.keep_last_n=1"]
    script = "tests/end_to_end/slow_snapshots_train.py"
    warm.python(*shared_runs.arguments(directory, "slow", *settings, script=script), SLOW_SECONDS="5")
    assert all((snapshot(directory / "slow", step) / "meta_dynamics.safetensors").exists() for step in (0, 2, 4))


def test_missing_layer_or_position_fails_at_the_start(arguments: Callable[..., list[str]]) -> None:
    suffixes = "learning_dynamics.layer_suffixes=[attention.v_porj]"
    output = warm.python(*arguments("bad", *SAVES, suffixes), check=False)
    assert "learning_dynamics.layer_suffixes: no module ends in 'attention.v_porj'" in output
    index = "learning_dynamics.sequence_idx=32"
    assert "use -32 to 31" in warm.python(*arguments("bad", *SAVES, index), check=False)


def test_export_is_readable_by_pico_analyze(directory: Path, one_rank: Path) -> None:
    out = directory / "for-pico-analyze"
    script = ["scripts/export.py", "snapshots", str(one_rank), str(out), "--format", "pico-analyze"]
    warm.python(*script)
    config = yaml.safe_load((out / "training_config.yaml").read_text())
    assert config["checkpointing"]["run_name"] == "one"
    heads, kv_heads, width = (config["model"][key] for key in ("attention_n_heads", "attention_n_kv_heads", "d_model"))
    states = {}
    for split in SPLITS:
        exported = out / "checkpoints" / "step_2" / "learning_dynamics"
        states = {kind: torch.load(exported / f"{split}_{kind}.pt", weights_only=True) for kind in KINDS}
        assert len(datasets.load_from_disk(exported / f"{split}_data")) == 8
        # pico-analyze takes the common prefix of the activation names as the name of the stack of layers
        prefix = os.path.commonprefix(list(states["activations"]))  # noqa: RUF071
        for kind in KINDS:
            for layer in range(2):
                values = states[kind][f"{prefix}{layer}.attention.v_proj"]
                assert values.dtype == torch.float32
                assert values.shape == ((8, 12) if kind == "activations" else (12, 24))
    # the component ov_circuit of pico-analyze splits the heads by these sizes
    head_dim = width // heads
    assert states["activations"]["layers.0.attention.v_proj"].shape[1] == kv_heads * head_dim
    assert states["weights"]["layers.0.attention.o_proj"].shape[1] == heads * head_dim
    assert f"error: {out} already exists" in warm.python(*script, check=False)


def test_failed_export_leaves_no_files(directory: Path, one_rank: Path) -> None:
    damaged, out = directory / "damaged", directory / "never-exported"
    shutil.copytree(one_rank, damaged)
    shutil.rmtree(snapshot(damaged, 2) / "val_data")
    command = ["scripts/export.py", "snapshots", str(damaged), str(out), "--format", "pico-analyze"]
    output = warm.python(*command, check=False)
    assert re.search(r"error: \S*val_data: No such file or directory; nothing was exported to", output)
    assert "Traceback" not in output
    assert not [path.name for path in directory.iterdir() if out.name in path.name]
    shutil.rmtree(damaged)


def test_analyze_and_report_show_the_snapshots(directory: Path, one_rank: Path) -> None:
    output = warm.python("scripts/analyze.py", str(one_rank), "--out", str(directory / "analysis"))
    assert "effective_rank" in output
    # the training rows differ from step to step, so there is no CKA of them
    train_output = warm.python(
        "scripts/analyze.py", str(one_rank), "--split", "train", "--out", str(directory / "train")
    )
    assert "effective_rank" in train_output
    assert "cka" in output
    assert "cka" not in train_output
    measurements = json.loads((directory / "analysis" / "val.json").read_text())
    order = {
        measure: [each["layer"] for each in measurements if (each["step"], each["measure"]) == (4, measure)]
        for measure in ("gradient_cosine", "displacement")
    }
    assert order["gradient_cosine"] == order["displacement"]
    weights = load_file(snapshot(one_rank, 4) / "val_weights.safetensors")
    layer = "layers.1.attention.o_proj"
    values = {
        each["measure"]: each["value"]
        for each in measurements
        if (each["step"], each["kind"], each["layer"]) == (4, "weights", layer)
    }
    assert values["norm"] == pytest.approx(float(weights[layer].norm()), rel=1e-6)
    shares = torch.svd(weights[layer]).S / torch.svd(weights[layer]).S.sum()
    wanted = float(torch.exp(-(shares * shares.log()).sum())) / len(shares)
    assert values["effective_rank"] == pytest.approx(wanted, rel=1e-5)
    last = max(each["step"] for each in measurements)
    assert all(
        each["value"] == pytest.approx(1)
        for each in measurements
        if (each["measure"], each["step"]) == ("cka_to_last", last)
    )
    assert "<h2>weights: effective rank</h2>" in (directory / "analysis" / "val.html").read_text()
    page = warm.python("scripts/report.py", str(one_rank), "--out", str(directory / "report")).strip()
    text = Path(page).read_text()
    assert "one: proportional effective rank" in text
    assert "one: distance that adaptation to held-out tasks moves each layer" in text
    (directory / "empty").mkdir()
    (directory / "empty" / "training_config.yaml").touch()
    empty = warm.python("scripts/analyze.py", str(directory / "empty"), check=False)
    assert "has no snapshots; train with learning_dynamics.save_every_n_steps set" in empty
