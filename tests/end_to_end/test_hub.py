"""Runs that push checkpoints to the Hugging Face hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import write_text_corpus
from tests.fake_model_hub import TOKEN, FakeHub, fake_hub
from tests.launching import warm
from tests.run_results import TINY

TRAIN = "scripts/train.py"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_corpus(tmp_path_factory.mktemp("hub") / "corpus.jsonl")


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[FakeHub]:
    """One hub for all tests: libraries read its address when the fork server imports them."""
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def hub(shared_hub: FakeHub) -> FakeHub:
    shared_hub.reset()
    return shared_hub


def settings(corpus: Path, directory: Path, name: str, *others: str) -> list[str]:
    paths = [f"data.paths=[{corpus}]", f"checkpointing.runs_dir={directory}", f"checkpointing.run_name={name}"]
    return ["--config", TINY, *paths, "checkpointing.hub.repo_id=lab/pico", "training.max_steps=4", *others]


def hub_variables(hub: FakeHub, token: str = TOKEN) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}


def test_checkpoints_snapshots_and_results_are_pushed(corpus: Path, tmp_path: Path, hub: FakeHub) -> None:
    saves = ["checkpointing.save_every_n_steps=2", "checkpointing.keep_last_n=1", "checkpointing.keep_weights=false"]
    snapshots = ["learning_dynamics.save_every_n_steps=2", "learning_dynamics.n_tasks=1"]
    hub.failures = [500]
    output = warm.torchrun(TRAIN, *settings(corpus, tmp_path, "run", *saves, *snapshots), **hub_variables(hub))
    assert [message for message, _, _ in hub.commits] == ["step 2", "step 4", "end of the run"]
    assert "pushed end of the run to lab/pico" in output
    files = hub.files
    assert {f"learning_dynamics/step_{step}/val_weights.safetensors" for step in (0, 2, 4)} <= files.keys()
    model = {path.name for path in (tmp_path / "run/checkpoints/step_4").iterdir() if path.is_file()}
    assert {name for name in files if "/" not in name} == model | {"README.md", "training_config.yaml"}
    assert {name.split("/")[0] for name in files if "/" in name} == {"learning_dynamics", "eval_results", "logs"}
    # the last commit contains the final results, and the checkpoint was pushed before
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
    for text in ("library_name: transformers", "4 of 4 outer steps", f"| 4 | {loss:.3f} |", "d_model: 24"):
        assert text in card
    assert not [
        name for name, content in files.items() if str(tmp_path).encode() in content or str(corpus).encode() in content
    ]
    kept_files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in kept_files if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in output + card


def test_failing_hub_does_not_end_a_run(corpus: Path, tmp_path: Path, hub: FakeHub) -> None:
    hub.default_failure = 403
    output = warm.python(TRAIN, *settings(corpus, tmp_path, "run"), **hub_variables(hub))
    assert "warning: step 4 was not pushed to the hub, training continues: lab/pico: " in output
    assert (tmp_path / "run/checkpoints/step_4/model.safetensors").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_invalid_token_fails_before_training(corpus: Path, tmp_path: Path, ranks: int, hub: FakeHub) -> None:
    output = warm.torchrun(
        TRAIN, *settings(corpus, tmp_path, "run"), ranks=ranks, check=False, **hub_variables(hub, "hf_wrong")
    )
    assert "error: checkpointing.hub.repo_id: lab/pico: " in output
    assert "hf_wrong" not in output
    assert not (tmp_path / "run").exists()
