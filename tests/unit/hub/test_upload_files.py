"""Only files that a run writes leave the machine, and they contain no local path."""

from pathlib import Path

import pytest

from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.config import dump_config, parse_config
from pico_ds.data.text.tokenizer import import_tokenizer, train_tokenizer
from pico_ds.hub.model_card import model_card
from pico_ds.hub.upload_files import model_files, public_config, result_files, snapshot_files

FOREIGN_FILES = (".env", ".nfs0001", "pytorch_model.bin", "id_rsa", "notes.txt", "model.safetensors.bak", "core.123")
MODEL = {"config.json", "decoder.py", "model.safetensors", "tokenizer.json"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory that also contains foreign files and links."""
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step_4"
    snapshot = checkpoint / "learning_dynamics"
    for directory in (checkpoint, snapshot, snapshot / "val_data", run / "eval_results", run / "logs"):
        directory.mkdir(parents=True, exist_ok=True)
        for name in FOREIGN_FILES:
            (directory / name).write_text("secret")
    for name in MODEL:
        (checkpoint / name).write_text("model file")
    for name in ("val_weights.safetensors", "val_data/state.json", "val_data/data-00000-of-00001.arrow"):
        (snapshot / name).write_text("snapshot file")
    (run / "eval_results" / "step_4.json").write_text("{}")
    (run / "logs" / "metrics.jsonl").write_text("{}")
    (tmp_path / "key").write_text("secret")
    for link in (checkpoint / "generation_config.json", run / "eval_results" / "step_5.json", snapshot / "val_data/x"):
        link.symlink_to(tmp_path / "key")
    (snapshot / "val_gradients.safetensors").symlink_to(tmp_path / "key")
    return run


def test_only_files_that_a_run_writes_are_pushed(run: Path) -> None:
    assert model_files(run / "checkpoints" / "step_4").keys() == MODEL
    assert result_files(run).keys() == {"logs/metrics.jsonl", "eval_results/step_4.json"}
    assert snapshot_files(CheckpointStore(run / "checkpoints"), [4]).keys() == {
        "learning_dynamics/step_4/val_weights.safetensors",
        "learning_dynamics/step_4/val_data/state.json",
        "learning_dynamics/step_4/val_data/data-00000-of-00001.arrow",
    }


def test_pushed_files_contain_no_local_path() -> None:
    config = parse_config(
        "{data: {source: files, paths: [/home/me/secret-project/*.jsonl, texts/a.txt], cache_dir: ~/cache, "
        "tokenizer: /home/me/secret-project/tokenizer}, checkpointing: {runs_dir: /scratch/me/runs}, "
        "model: {init_from: /scratch/me/llama, vocab_size: 100}, "
        "evaluation: {perplexity: {data: /scratch/me/val.jsonl}}}"
    )
    public = public_config(config)
    pushed = dump_config(public) + model_card("lab/pico", public, 4, {})
    for part in ("/home", "/scratch", "secret-project", "~"):
        assert part not in pushed
    assert public.data.paths == ["*.jsonl", "texts/a.txt"]
    assert public.model.init_from == "llama"
    assert public.checkpointing.runs_dir == "runs"


def test_imported_tokenizer_contains_no_local_path(tmp_path: Path) -> None:
    train_tokenizer(["a few words to learn from"], 300, tmp_path / "secret-place")
    import_tokenizer(str(tmp_path / "secret-place"), tmp_path / "imported")
    for path in (tmp_path / "imported").iterdir():
        assert b"secret-place" not in path.read_bytes(), path.name
