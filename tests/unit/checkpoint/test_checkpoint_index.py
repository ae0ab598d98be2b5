"""The index is validated before a reader uses it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from pico_ds.checkpoint.checkpoint_index import FORMAT_VERSION, INDEX_HASH_NAME, INDEX_NAME, STATE_DIRECTORY, Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.errors import CheckpointError
from tests.unit.checkpoint.conftest import SHAPES, save


@pytest.fixture
def checkpoint(store: CheckpointStore) -> Path:
    return save(store, 4)


def rewrite(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the index and update its hash, as an attacker would."""
    path = checkpoint / STATE_DIRECTORY / INDEX_NAME
    content = json.loads(path.read_text())
    change(content)
    text = json.dumps(content)
    path.write_text(text)
    path.with_name(INDEX_HASH_NAME).write_text(f"{xxhash.xxh3_128_hexdigest(text.encode())}  {INDEX_NAME}\n")


def test_index_lists_every_file_and_covers_every_parameter(checkpoint: Path) -> None:
    index = Index.read(checkpoint)
    on_disk = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    own = {f"{STATE_DIRECTORY}/{INDEX_NAME}", f"{STATE_DIRECTORY}/{INDEX_HASH_NAME}"}
    assert set(index.files) == on_disk - own
    assert {name: record.shape for name, record in index.parameters.items()} == SHAPES
    parts = index.parameters["decoder.embedding_proj.weight"].fragments
    assert [(part.offset, part.length) for part in parts] == [(0, 17), (17, 18)]
    assert (index.world_size, index.zero_stage, index.step) == (2, 1, 4)


def test_hash_file_has_the_format_of_xxh128sum(checkpoint: Path) -> None:
    text = (checkpoint / STATE_DIRECTORY / INDEX_NAME).read_bytes()
    assert (
        checkpoint / STATE_DIRECTORY / INDEX_HASH_NAME
    ).read_text() == f"{xxhash.xxh128(text).hexdigest()}  index.json\n"


@pytest.mark.parametrize("missing", [INDEX_NAME, INDEX_HASH_NAME])
def test_checkpoint_without_index_or_hash_is_incomplete(checkpoint: Path, missing: str) -> None:
    (checkpoint / STATE_DIRECTORY / missing).unlink()
    with pytest.raises(CheckpointError, match=f"is not a complete checkpoint .*{missing}"):
        Index.read(checkpoint)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_index_is_detected(checkpoint: Path, keep: int) -> None:
    path = checkpoint / STATE_DIRECTORY / INDEX_NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        Index.read(checkpoint)


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/passwd", "training_state/../../x", "a\\..\\b", "", "."], ids=repr
)
def test_path_out_of_the_checkpoint_is_rejected(checkpoint: Path, name: str) -> None:
    def escape(content: dict[str, Any]) -> None:
        content["files"][name] = content["files"]["config.json"]

    rewrite(checkpoint, escape)
    with pytest.raises(CheckpointError, match="is outside the checkpoint"):
        Index.read(checkpoint)


def test_symlink_out_of_the_checkpoint_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    shard = checkpoint / STATE_DIRECTORY / "shard_1.safetensors"
    shard.rename(tmp_path / "outside.safetensors")
    shard.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="is a link to a file outside the checkpoint"):
        Index.read(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fragments: fragments.pop(), "17 of 35 elements are in a fragment"),
        (lambda fragments: fragments.pop(0), "elements 0 to 17 are in no fragment"),
        (lambda fragments: fragments[1].update(offset=16), "are in no fragment, or in two"),
        (lambda fragments: fragments[1].update(length=19), "36 of 35 elements"),
        (lambda fragments: fragments[0].update(file="other.safetensors"), "which is not in the list of files"),
        (lambda fragments: fragments.append({"file": fragments[0]["file"], "offset": 35, "length": 0}), "length"),
    ],
)
def test_gaps_and_overlaps_are_detected(checkpoint: Path, change: Callable[[Any], None], message: str) -> None:
    rewrite(checkpoint, lambda content: change(content["parameters"]["decoder.embedding_proj.weight"]["fragments"]))
    with pytest.raises(CheckpointError, match=message):
        Index.read(checkpoint)


def test_newer_format_version_is_rejected(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda content: content.update(format_version=FORMAT_VERSION + 1, step={"new": "shape"}))
    with pytest.raises(CheckpointError, match=r"has format version 2, but pico_ds .* reads up to 1"):
        Index.read(checkpoint)


def test_unknown_keys_of_an_index_are_ignored(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda content: content.update(note="from a later release of the same format"))
    assert Index.read(checkpoint).step == 4


@pytest.mark.parametrize(
    "change", [{"step": "4"}, {"format": "another"}, {"files": []}, {"hash": "md5"}, {"chunk_bytes": 1}]
)
def test_invalid_index_is_rejected(checkpoint: Path, change: dict[str, Any]) -> None:
    rewrite(checkpoint, lambda content: content.update(change))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Index.read(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["parameters"]["head.bias"].update(shape=[-1]),
        lambda content: content["parameters"]["head.bias"].update(shape=[2**62, 2**62]),
        lambda content: content["parameters"]["head.bias"]["fragments"][0].update(offset=-1),
        lambda content: content["parameters"]["head.bias"]["fragments"][0].update(length=0),
        lambda content: content["parameters"].update(
            {"head.bias": {"shape": [2**50], "fragments": [{**_FRAGMENT, "offset": 0, "length": 2**50}]}}
        ),
    ],
)
def test_hostile_shapes_are_rejected_before_allocation(
    checkpoint: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite(checkpoint, change)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Index.read(checkpoint)


_FRAGMENT = {"file": f"{STATE_DIRECTORY}/shard_0.safetensors"}


def test_index_that_is_a_pipe_fails_without_waiting(checkpoint: Path) -> None:
    path = checkpoint / STATE_DIRECTORY / INDEX_NAME
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="is not a complete checkpoint"):
        Index.read(checkpoint)
