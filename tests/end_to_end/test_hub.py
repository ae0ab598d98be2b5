"""Runs that are pushed to a hub, as a user starts them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import write_text_corpus
from tests.end_to_end.commands import TINY, run, torchrun
from tests.fake_hub import TOKEN, FakeHub, fake_hub
from tests.launching import REPOSITORY

TRAIN = str(REPOSITORY / "scripts" / "train.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_corpus(tmp_path_factory.mktemp("hub") / "corpus.jsonl")


def settings(corpus: Path, directory: Path, name: str, *others: str) -> list[str]:
    where = [f"data.paths=[{corpus}]", f"checkpointing.runs_dir={directory}", f"checkpointing.run_name={name}"]
    return ["--config", TINY, *where, "checkpointing.hub.repo_id=lab/pico", "training.max_steps=4", *others]


def at(hub: FakeHub, token: str = TOKEN) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}


def test_checkpoints_snapshots_and_results_are_pushed(corpus: Path, tmp_path: Path) -> None:
    every = ["checkpointing.save_every_n_steps=2", "checkpointing.keep_last_n=1", "checkpointing.keep_weights=false"]
    watched = ["learning_dynamics.save_every_n_steps=2", "learning_dynamics.n_tasks=1"]
    with fake_hub() as hub:
        hub.troubles = [500]
        output = torchrun(TRAIN, *settings(corpus, tmp_path, "run", *every, *watched), **at(hub))
    assert [message for message, _, _ in hub.commits] == ["step 2", "step 4", "end of the run"]
    assert "pushed end of the run to lab/pico" in output
    files = hub.files
    assert {f"learning_dynamics/step_{step}/val_weights.safetensors" for step in (0, 2, 4)} <= files.keys()
    assert not [name for name in files if "training_state" in name]
    # the results of the end come after its checkpoint
    assert "eval_results/step_4.json" in hub.commits[2][2]
    assert "model.safetensors" not in hub.commits[2][2]

    for name, content in files.items():
        (tmp_path / "pulled" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(content)
    pulled = AutoModelForCausalLM.from_pretrained(tmp_path / "pulled", trust_remote_code=True)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoints/step_4", trust_remote_code=True)
    for ours, theirs in zip(pulled.state_dict().values(), kept.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pulled", trust_remote_code=True)
    assert tokenizer.mask_token == "[MASK]"
    card = files["README.md"].decode()
    loss = json.loads(files["eval_results/step_4.json"])["validation_loss"]
    for said in ("library_name: transformers", "4 of 4 outer steps", f"| 4 | {loss:.3f} |", "d_model: 24"):
        assert said in card
    kept_files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in kept_files if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in output + card


def test_a_hub_that_fails_does_not_end_a_run(corpus: Path, tmp_path: Path) -> None:
    with fake_hub() as hub:
        hub.always = 403
        output = run("python", TRAIN, *settings(corpus, tmp_path, "run"), **at(hub))
    assert "warning: step 4 was not pushed to the hub, and training goes on: lab/pico: " in output
    assert (tmp_path / "run/checkpoints/step_4/model.safetensors").exists()


@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_a_wrong_token_ends_a_run_before_it_begins(corpus: Path, tmp_path: Path, launcher: str) -> None:
    given = settings(corpus, tmp_path, "run")
    with fake_hub() as hub:
        if launcher == "python":
            output = run("python", TRAIN, *given, check=False, **at(hub, "hf_wrong"))
        else:
            output = torchrun(TRAIN, *given, check=False, **at(hub, "hf_wrong"))
    assert "error: checkpointing.hub.repo_id: lab/pico: " in output
    assert "hf_wrong" not in output
    assert not (tmp_path / "run").exists()
