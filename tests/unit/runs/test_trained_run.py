"""Loading a trained model: its initial weights, its evaluation head, and its step."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pico_ds.checkpoint.huggingface_export import META_NAME, WEIGHTS_NAME
from pico_ds.config import dump_config, parse_config
from pico_ds.engine.distributed import Process
from pico_ds.errors import CheckpointError, TaskError
from pico_ds.evaluation.few_shot import check_n_way
from pico_ds.meta.starting_model import initial_module
from pico_ds.model.meta_model import DECODER
from pico_ds.runs.trained_run import load_trained_model
from tests.hf_checkpoint import SHAPE, write_checkpoint

SINGLE_RANK = Process(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def write_run(path: Path, meta: str = "", init_from: Path | None = None) -> Path:
    """Write a run without any step, whose checkpoint contains the initial weights."""
    shape = {**SHAPE, "activation_hidden_dim": 96, "max_seq_len": 64, "norm_eps": 1e-3}
    if init_from is not None:
        shape["init_from"] = str(init_from)
    model = ", ".join(f"{name}: {value}" for name, value in shape.items())
    config = parse_config(f"{{model: {{{model}}}, data: {{sequence_length: 32}}, meta: {{{meta}}}}}")
    checkpoint = write_checkpoint(path / "checkpoints" / "step_6")
    (path / "training_config.yaml").write_text(dump_config(config))
    (path / "checkpoints" / "latest").write_text("step_6\n")
    weights = {name: part.detach().clone() for name, part in initial_module(config).named_parameters()}
    decoder = {name.removeprefix(DECODER): part for name, part in weights.items() if name.startswith(DECODER)}
    save_file(decoder, checkpoint / WEIGHTS_NAME)
    save_file({name: part for name, part in weights.items() if not name.startswith(DECODER)}, checkpoint / META_NAME)
    return path


def test_untrained_weights_equal_the_initial_weights_of_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", init_from=write_checkpoint(tmp_path / "source"))
    model = load_trained_model(run, [], SINGLE_RANK).model
    assert model.untrained.keys() == model.theta.keys()
    assert all(torch.equal(part, model.theta[name]) for name, part in model.untrained.items())


def test_evaluation_head_override_replaces_the_trained_head(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "learner: multitask, head: vocab, vocab_head_layers: 1")
    assert load_trained_model(run, [], SINGLE_RANK).model.learner.config.head == "vocab"
    trained = load_trained_model(run, ["evaluation.head=prototype"], SINGLE_RANK)
    assert trained.model.learner.config.head == "prototype"
    assert trained.config.meta.head == "vocab"


def test_trained_linear_head_has_a_fixed_number_of_classes(tmp_path: Path) -> None:
    model = load_trained_model(write_run(tmp_path / "run", "head: linear"), [], SINGLE_RANK).model
    check_n_way(model.learner, model.theta, 5)
    with pytest.raises(TaskError, match=r"got 20 classes with meta.head: linear, which was trained for 5"):
        check_n_way(model.learner, model.theta, 20)
    loaded = load_trained_model(tmp_path / "run", ["evaluation.head=prototype"], SINGLE_RANK).model
    check_n_way(loaded.learner, loaded.theta, 20)


def test_renamed_checkpoint_without_training_state_fails(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert load_trained_model(run, [], SINGLE_RANK).step == 6
    best = (run / "checkpoints" / "step_6").rename(run / "checkpoints" / "best")
    with pytest.raises(CheckpointError, match=r"cannot find the step .* 'best' is not .*; name it step_<N>"):
        load_trained_model(best, [], SINGLE_RANK)
