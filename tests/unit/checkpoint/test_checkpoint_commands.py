"""`verify` finds all damage, `consolidate` joins the shards, and neither executes code from a checkpoint."""

import json
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pico_ds.checkpoint.checkpoint_commands import consolidate, find_checkpoints, verify
from pico_ds.checkpoint.checkpoint_index import INDEX_NAME, STATE_DIRECTORY, Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.file_hashes import synced_file_record
from pico_ds.checkpoint.huggingface_export import write_parameters
from pico_ds.checkpoint.sharded_state_reader import StateReader
from pico_ds.engine.optimizer_state import STATE_KINDS, StateKind
from pico_ds.errors import CheckpointError
from tests.unit.checkpoint.conftest import SHAPES, save, values_of
from tests.unit.checkpoint.test_checkpoint_index import rewrite


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_range_is_read_back_from_any_number_of_shards(store: CheckpointStore, world_size: int) -> None:
    checkpoint, values = save(store, 4, world_size), values_of()
    with StateReader(checkpoint) as reader:
        for kind in STATE_KINDS:
            for name, shape in SHAPES.items():
                assert torch.equal(reader.read_whole(name, kind), values[kind][name])
                flat = values[kind][name].flatten()
                for first in range(len(flat)):
                    for end in range(first + 1, len(flat) + 1):
                        out = torch.empty(end - first)
                        reader.read(name, kind, first, out)
                        assert torch.equal(out, flat[first:end]), (name, shape, first, end)


def test_reading_an_unsaved_parameter_names_it(store: CheckpointStore) -> None:
    with StateReader(save(store, 4)) as reader, pytest.raises(CheckpointError, match="has no parameter 'other'"):
        reader.read("other", "master", 0, torch.empty(1))


def test_verify_accepts_an_intact_checkpoint(store: CheckpointStore) -> None:
    assert list(verify(save(store, 4, world_size=3))) == []


SHARDS = [f"{STATE_DIRECTORY}/shard_{rank}.safetensors" for rank in range(3)]


@pytest.mark.parametrize("file", [*SHARDS, "config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "another run"])
def test_verify_names_the_damaged_file(store: CheckpointStore, tmp_path: Path, file: str, damage: str) -> None:
    checkpoint = save(store, 4, world_size=3)
    other = save(CheckpointStore(tmp_path / "other"), 4, world_size=3, seed=1)
    path = checkpoint / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_bytes((other / file).read_bytes() if file in SHARDS else b"[]")
    (problem,) = verify(checkpoint)
    assert str(path) in problem


def test_verify_names_an_unlisted_file(store: CheckpointStore) -> None:
    checkpoint = save(store, 4)
    (checkpoint / "modeling_evil.py").write_text("")
    (problem,) = verify(checkpoint)
    assert "modeling_evil.py: is not part of the checkpoint" in problem


def test_consolidate_writes_whole_fp32_weights(store: CheckpointStore, tmp_path: Path) -> None:
    checkpoint, out = save(store, 4, world_size=3), tmp_path / "out.safetensors"
    assert consolidate(checkpoint, out) == 41
    loaded, master = load_file(out), values_of()["master"]
    assert loaded.keys() == {"embedding_proj.weight", "output_norm.weight", "head.bias"}
    assert torch.equal(loaded["embedding_proj.weight"], master["decoder.embedding_proj.weight"])
    with pytest.raises(CheckpointError, match="already exists"):
        consolidate(checkpoint, out)


def test_consolidate_of_a_damaged_checkpoint_leaves_no_files(store: CheckpointStore, tmp_path: Path) -> None:
    checkpoint = save(store, 4)
    shard = checkpoint / SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-5] + b"xxxxx")
    with pytest.raises(CheckpointError, match=r"shard_1\.safetensors"):
        consolidate(checkpoint, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [store.directory]


def test_path_may_be_a_checkpoint_or_a_run(store: CheckpointStore, tmp_path: Path) -> None:
    two, ten = save(store, 2), save(store, 10)
    assert find_checkpoints(two) == [two]
    assert find_checkpoints(store.directory) == find_checkpoints(tmp_path) == [two, ten]
    with pytest.raises(CheckpointError, match="is not a checkpoint and contains none"):
        find_checkpoints(tmp_path / "nowhere")


class MaliciousPickle:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def test_malicious_code_is_never_executed(store: CheckpointStore, tmp_path: Path) -> None:
    """Pickles and modeling code in a checkpoint are either rejected or ignored."""
    checkpoint, trace = save(store, 4), tmp_path / "trace"
    payload = pickle.dumps(MaliciousPickle(trace))
    pickle.loads(payload)
    assert trace.exists(), "the payload must work"
    trace.unlink()
    for name in ("optimizer.pt", "training_state/shard_9.pt", "model.safetensors", "pytorch_model.bin"):
        (checkpoint / name).write_bytes(payload)
    (checkpoint / "huggingface.py").write_text(f"open({str(trace)!r}, 'w')")
    problems = list(verify(checkpoint))
    assert len(problems) == 5
    with StateReader(checkpoint) as reader:
        reader.read_whole("head.bias", "master")
    consolidate(checkpoint, tmp_path / "out.safetensors")
    (checkpoint / SHARDS[0]).write_bytes(payload)
    with pytest.raises(CheckpointError):
        consolidate(checkpoint, tmp_path / "out2.safetensors")
    (checkpoint / STATE_DIRECTORY / INDEX_NAME).write_bytes(payload)
    with pytest.raises(CheckpointError):
        Index.read(checkpoint)
    assert not trace.exists()


def test_package_never_uses_pickle() -> None:
    import pico_ds

    for path in Path(pico_ds.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for call in (
            "torch.load",
            "pickle",
            "joblib",
            "allow_pickle=True",
            "gather_object",
            "broadcast_object",
            "marshal",
        ):
            assert call not in text, f"{path}: {call}"


def test_consolidate_holds_one_tensor_at_a_time(store: CheckpointStore, tmp_path: Path) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    class Watched(StateReader):
        def read_whole(self, parameter: str, kind: StateKind) -> torch.Tensor:
            assert [one() for one in held if one() is not None] == []
            tensor = super().read_whole(parameter, kind)
            held.append(weakref.ref(tensor))
            return tensor

    with Watched(save(store, 4)) as reader:
        write_parameters(reader, reader.index.parameters, tmp_path / "out.safetensors", torch.float32)
    assert len(held) == len(SHAPES)


def test_verify_reports_a_checkpoint_without_index(store: CheckpointStore) -> None:
    """`verify` of a run includes a checkpoint whose index is missing, but not an interrupted save."""
    (save(store, 4) / STATE_DIRECTORY / INDEX_NAME).unlink()
    save(store, 6)
    store.staging(8, 5).mkdir()
    found = find_checkpoints(store.directory.parent)
    assert found == [store.path(4), store.path(6)]
    assert any("is not a complete checkpoint" in problem for problem in verify(found[0]))


def forge(checkpoint: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint and update the hashes in the index."""
    (checkpoint / name).write_bytes(content)
    record = synced_file_record(checkpoint / name)

    def change(index: dict[str, Any]) -> None:
        index["files"][name] = {"size_bytes": record.size_bytes, "chunk_hashes": [*record.chunk_hashes]}

    rewrite(checkpoint, change)


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def out_of_bounds(header: dict[str, Any]) -> None:
    (_, last) = max((entry["data_offsets"][0], name) for name, entry in header.items() if name != "__metadata__")
    header[last]["data_offsets"] = [10**6, 10**6 + header[last]["data_offsets"][1] - header[last]["data_offsets"][0]]


def overlapping(header: dict[str, Any]) -> None:
    first, second = (
        name for name in header if name.endswith("embedding_proj.weight") and not name.startswith("exp_avg_sq")
    )
    header[second]["data_offsets"] = header[first]["data_offsets"]


@pytest.mark.parametrize("damage", [out_of_bounds, overlapping])
def test_shard_header_with_gaps_is_detected_despite_a_valid_hash(
    store: CheckpointStore, damage: Callable[[dict[str, Any]], None]
) -> None:
    checkpoint, name = save(store, 4), f"{STATE_DIRECTORY}/shard_0.safetensors"
    header, data = header_of((checkpoint / name).read_bytes())
    damage(header)
    text = json.dumps(header).encode()
    forge(checkpoint, name, len(text).to_bytes(8, "little") + text + data)
    (problem,) = verify(checkpoint)
    assert f"{checkpoint / name}: is not a safetensors file" in problem


@pytest.mark.parametrize(
    ("other", "message"),
    [("step_6", "is a shard of step 6, not of step 4"), ("shard_1", "it is the shard of another rank")],
)
def test_shard_of_another_step_or_rank_is_detected(store: CheckpointStore, other: str, message: str) -> None:
    checkpoint, name = save(store, 4), f"{STATE_DIRECTORY}/shard_0.safetensors"
    source = save(store, 6) / name if other == "step_6" else checkpoint / STATE_DIRECTORY / "shard_1.safetensors"
    forge(checkpoint, name, source.read_bytes())
    assert any(message in problem for problem in verify(checkpoint))
    with pytest.raises(CheckpointError, match=message), StateReader(checkpoint) as reader:
        reader.read_whole("decoder.embedding_proj.weight", "master")
