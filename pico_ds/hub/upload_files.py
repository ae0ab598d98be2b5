"""Selects the files of a run that are pushed to its repository."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from typing import Any

from pico_ds.checkpoint.checkpoint_index import INDEX_NAME, STATE_DIRECTORY, Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.huggingface_export import WEIGHTS_NAME
from pico_ds.config import RunConfig

#: files that a run writes itself; no other file of its directories is pushed
_MODEL = re.compile(
    r"(model|meta_parameters)\.safetensors|(config|generation_config)\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map|special_token_ids|added_tokens|vocab)\.json|vocab\.txt|merges\.txt"
    r"|(attention|decoder|huggingface|layers|recompute|rotary_embedding)\.py"
)
_RESULT = re.compile(r"step_\d+\.json")
_SNAPSHOT = re.compile(
    r"(train|val)_(activations|gradients|weights)\.safetensors|meta_dynamics\.safetensors"
    r"|(train|val)_data/(state\.json|dataset_info\.json|data-\d+-of-\d+\.arrow)"
)


def model_files(checkpoint: Path) -> dict[str, Path]:
    """Return the files of a checkpoint that `from_pretrained` loads, without the training state.

    Raises:
        CheckpointError: the index of the checkpoint is damaged.
    """
    assert (checkpoint / WEIGHTS_NAME).exists(), f"{checkpoint} has no weights"
    # a checkpoint that lost its training state has no index
    has_index = (checkpoint / STATE_DIRECTORY / INDEX_NAME).exists()
    names = Index.read(checkpoint).files if has_index else (path.name for path in checkpoint.iterdir())
    return _regular({name: checkpoint / name for name in sorted(names) if _MODEL.fullmatch(name)})


def result_files(run: Path) -> dict[str, Path]:
    """Return the metrics and the evaluations of training."""
    results = sorted(path for path in (run / "eval_results").glob("*") if _RESULT.fullmatch(path.name))
    return _regular({path.relative_to(run).as_posix(): path for path in (run / "logs" / "metrics.jsonl", *results)})


def public_config(config: RunConfig) -> RunConfig:
    """Return the configuration with each absolute path replaced by its last part, to hide local directories."""
    return RunConfig.model_validate(_without_directories(config.model_dump()))


def _without_directories(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_directories(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_directories(item) for item in value]
    is_absolute = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
    return PurePath(value).name or "/" if is_absolute else value


def snapshot_files(store: CheckpointStore, steps: Collection[int]) -> dict[str, Path]:
    """Return the snapshots of the given steps, with one directory for each step."""
    found: dict[str, Path] = {}
    for step in sorted(steps):
        directory = store.snapshot_path(step)
        for path in sorted(directory.rglob("*")):
            name = path.relative_to(directory).as_posix()
            if _SNAPSHOT.fullmatch(name):
                found[f"learning_dynamics/step_{step}/{name}"] = path
    return _regular(found)


def _regular(files: dict[str, Path]) -> dict[str, Path]:
    """Drop paths that are not regular files. A link could point to a private file."""
    return {name: path for name, path in files.items() if path.is_file() and not path.is_symlink()}


def snapshot_steps(store: CheckpointStore) -> Iterator[int]:
    """Yield the steps that have a snapshot."""
    for path in store.directory.glob("step_*"):
        name = path.name.removeprefix("step_")
        if name.isdigit() and store.snapshot_path(int(name)).is_dir():
            yield int(name)
