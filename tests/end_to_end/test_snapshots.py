"""Snapshots of learning dynamics: the same files for every stage and number of ranks, and no trace in the training."""

from pathlib import Path

import datasets
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import write_text_corpus
from tests.end_to_end.commands import TINY, course_of, run, torchrun
from tests.reference import relative_error

SPLITS, KINDS = ("train", "val"), ("activations", "weights", "gradients")
LAYERS = [f"layers.{i}.{end}" for i in range(2) for end in ("attention.v_proj", "attention.o_proj", "swiglu.w_2")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_corpus(tmp_path_factory.mktemp("snapshots") / "corpus.jsonl").parent


def arguments(directory: Path, name: str, *others: str) -> list[str]:
    where = [f"checkpointing.runs_dir={directory}", f"checkpointing.run_name={name}"]
    return ["scripts/train.py", "--config", TINY, f"data.paths=[{directory / 'corpus.jsonl'}]", *where, *others]


EVERY = ["learning_dynamics.save_every_n_steps=2", "checkpointing.save_every_n_steps=4"]


@pytest.fixture(scope="module")
def one_rank(directory: Path) -> Path:
    run("python", *arguments(directory, "one", *EVERY, "--deepspeed_config", "ds_configs/zero1.json"))
    return directory / "one"


def snapshot(run_directory: Path, step: int) -> Path:
    return run_directory / "checkpoints" / f"step_{step}" / "learning_dynamics"


def test_there_is_one_at_every_due_step_with_or_without_a_checkpoint(one_rank: Path) -> None:
    for step in (0, 2, 4, 6):
        names = {f"{split}_{kind}.safetensors" for split in SPLITS for kind in KINDS}
        found = {path.name for path in snapshot(one_rank, step).iterdir()}
        assert found == names | {"train_data", "val_data", "meta_dynamics.safetensors"}
        assert (one_rank / f"checkpoints/step_{step}/model.safetensors").exists() == (step in (4, 6))
    assert not list((one_rank / "checkpoints").glob(".*"))


@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_write_the_files_of_one(stage: int, directory: Path, one_rank: Path) -> None:
    name = f"two-zero{stage}"
    torchrun(*arguments(directory, name, *EVERY, "--deepspeed_config", f"ds_configs/zero{stage}.json"))
    for step in (0, 2, 4, 6):
        for path in snapshot(one_rank, step).glob("*.safetensors"):
            got, wanted = load_file(snapshot(directory / name, step) / path.name), load_file(path)
            assert got.keys() == wanted.keys()
            assert all(torch.equal(got[name].isnan(), wanted[name].isnan()) for name in wanted)
            known = [{name: values.nan_to_num() for name, values in tensors.items()} for tensors in (got, wanted)]
            # step 0 shows the snapshots alone; later ones show the trajectories as well, whose rounding grows
            assert relative_error(*known) < (1e-6 if step == 0 else 1e-3), (step, path.name)
        for split in SPLITS:
            rows = [
                datasets.load_from_disk(snapshot(at, step) / f"{split}_data") for at in (directory / name, one_rank)
            ]
            assert rows[0].to_dict() == rows[1].to_dict()


def test_training_is_bit_identical_to_one_without(directory: Path, one_rank: Path) -> None:
    run("python", *arguments(directory, "without", "--deepspeed_config", "ds_configs/zero1.json"))
    assert course_of(directory / "without") == course_of(one_rank)
    weights = [load_file(directory / f"{name}/checkpoints/step_6/model.safetensors") for name in ("without", "one")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_weights_are_those_of_the_step(one_rank: Path) -> None:
    """Written in the background, while training changes the weights."""
    saved = load_file(one_rank / "checkpoints/step_4/model.safetensors")
    weights = load_file(snapshot(one_rank, 4) / "train_weights.safetensors")
    assert set(weights) == set(LAYERS)
    assert all(torch.equal(weights[path], saved[f"{path}.weight"]) for path in LAYERS)


def test_headers_say_units_and_shapes(one_rank: Path) -> None:
    with safe_open(snapshot(one_rank, 2) / "val_gradients.safetensors", "pt") as file:
        about = file.metadata()
    assert about["format"] == "pico_ds.learning_dynamics"
    assert (about["step"], about["split"], about["kind"]) == ("2", "val", "gradients")
    assert "nats per token" in about["unit"]
    with safe_open(snapshot(one_rank, 2) / "meta_dynamics.safetensors", "pt") as file:
        assert "[tasks, moments]" in file.metadata()["displacement.<layer>"]
        assert tuple(file.get_tensor("query_loss").shape) == (4, 6)
        displacement = file.get_tensor("displacement.layers.0.attention.o_proj")
    assert displacement[:, 0].eq(0).all()
    assert displacement.diff(dim=1).gt(0).all(), "every step moves on"


def test_batches_are_datasets_with_text(one_rank: Path) -> None:
    found = datasets.load_from_disk(snapshot(one_rank, 0) / "val_data")
    assert len(found) == 8
    assert len(found[0]["input_ids"]) == 33
    assert "the" in found[0]["text"]


def test_a_snapshot_that_was_cut_off_is_made_up_for(directory: Path, one_rank: Path) -> None:
    output = run("python", *arguments(directory, "one", *EVERY, "training.max_steps=8"))
    assert "snapshot" in output
    lost = snapshot(one_rank, 8)
    kept = load_file(lost / "val_activations.safetensors")
    lost.rename(one_rank / "lost")
    run("python", *arguments(directory, "one", *EVERY, "training.max_steps=10"))
    assert relative_error(load_file(lost / "val_activations.safetensors"), kept) == 0
    assert snapshot(one_rank, 10).exists()


def test_layers_that_are_not_there_are_an_error_at_the_start(directory: Path) -> None:
    suffixes = "learning_dynamics.layer_suffixes=[attention.v_porj]"
    output = run("python", *arguments(directory, "bad", *EVERY, suffixes), check=False)
    assert "learning_dynamics.layer_suffixes: no module ends in 'attention.v_porj'" in output
    index = "learning_dynamics.sequence_idx=32"
    assert "take -32 to 31" in run("python", *arguments(directory, "bad", *EVERY, index), check=False)
