"""What a run has for its repository."""

from collections.abc import Collection, Iterator
from pathlib import Path

from pico_ds.checkpoint.store import CheckpointStore
from pico_ds.checkpoint.weights import WEIGHTS_NAME


def model_files(checkpoint: Path) -> dict[str, Path]:
    """The model directory of a checkpoint, without the state of training: what `from_pretrained` loads."""
    assert (checkpoint / WEIGHTS_NAME).exists(), f"{checkpoint} holds no weights"
    return {path.name: path for path in sorted(checkpoint.iterdir()) if path.is_file()}


def result_files(run: Path) -> dict[str, Path]:
    """Configuration, metrics and results of evaluations."""
    found = [
        run / "training_config.yaml",
        run / "logs" / "metrics.jsonl",
        *sorted((run / "eval_results").glob("*.json")),
    ]
    return {path.relative_to(run).as_posix(): path for path in found if path.exists()}


def snapshot_files(store: CheckpointStore, steps: Collection[int]) -> dict[str, Path]:
    """Snapshots of these steps, each in a directory of its own."""
    found: dict[str, Path] = {}
    for step in sorted(steps):
        directory = store.snapshot_path(step)
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                found[f"learning_dynamics/step_{step}/{path.relative_to(directory).as_posix()}"] = path
    return found


def snapshot_steps(store: CheckpointStore) -> Iterator[int]:
    """Steps that a snapshot stands of."""
    for path in store.directory.glob("step_*"):
        name = path.name.removeprefix("step_")
        if name.isdigit() and store.snapshot_path(int(name)).is_dir():
            yield int(name)
