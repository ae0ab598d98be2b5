"""Reads ranges of master weights and moments from the shards of a checkpoint, on any number of ranks."""

import json
from pathlib import Path

import torch
from torch import Tensor

from pico_ds.checkpoint.checkpoint_index import Index
from pico_ds.checkpoint.safetensors_reader import RECOVER, TensorPlace, VerifiedFile, read_header
from pico_ds.engine.optimizer_state import STATE_KINDS, StateKind
from pico_ds.errors import CheckpointError


def entry_name(kind: StateKind, parameter: str) -> str:
    """Return the name of a fragment in its shard."""
    return f"{kind}/{parameter}"


def read_shard_header(file: VerifiedFile, name: str, index: Index) -> dict[str, TensorPlace]:
    """Return the tensors of a shard, after comparing them with the index.

    Raises:
        CheckpointError: the shard is damaged, lacks a fragment, or belongs to another step or rank.
    """
    places, metadata = read_header(file)
    if metadata.get("step", str(index.step)) != str(index.step):
        raise CheckpointError(
            f"{file.path}: is a shard of step {metadata['step']}, not of step {index.step}; {RECOVER}"
        )
    offsets = _offsets_of(metadata)
    for parameter, record in index.parameters.items():
        for fragment in record.fragments:
            if fragment.file != name:
                continue
            if offsets.get(parameter, fragment.offset) != fragment.offset:
                raise CheckpointError(
                    f"{file.path}: holds {parameter!r} from element {offsets[parameter]} on, but the index says "
                    f"{fragment.offset}, so it is the shard of another rank; {RECOVER}"
                )
            for entry in (entry_name(kind, parameter) for kind in STATE_KINDS):
                place = places.get(entry)
                if place is None or (place.dtype, place.size_bytes) != ("F32", 4 * fragment.length):
                    raise CheckpointError(
                        f"{file.path}: does not hold {fragment.length} fp32 values as {entry!r}; {RECOVER}"
                    )
    return places


def _offsets_of(metadata: dict[str, str]) -> dict[str, int]:
    """Return the offset of each fragment that the metadata of a shard records; empty if there are none."""
    try:
        return {name: part["offset"] for name, part in json.loads(metadata.get("fragments", "{}")).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


class StateReader:
    """Random access to the sharded state. Every chunk is compared with its hash before it is used."""

    def __init__(self, checkpoint: Path, index: Index | None = None) -> None:
        """
        Args:
            index: index of a checkpoint that is still being written; None reads the index of the checkpoint.

        Raises:
            CheckpointError: the checkpoint is incomplete or damaged.
        """
        self.checkpoint = checkpoint
        self.index = index or Index.read(checkpoint)
        self._shards: dict[str, tuple[VerifiedFile, dict[str, TensorPlace]]] = {}

    def read(self, parameter: str, kind: StateKind, offset: int, out: Tensor) -> None:
        """Fill a flat fp32 host tensor with the elements of a parameter from `offset` on.

        Raises:
            CheckpointError: a file is missing, truncated or changed, or the parameter was not saved.
        """
        record = self.index.parameters.get(parameter)
        if record is None:
            raise CheckpointError(f"{self.checkpoint}: has no parameter {parameter!r}; it was saved by another model")
        end = offset + out.numel()
        assert out.dtype == torch.float32
        assert 0 <= offset <= end <= record.numel
        data, filled = out.numpy().data.cast("B"), 0
        for fragment in record.fragments:
            first, last = max(offset, fragment.offset), min(end, fragment.offset + fragment.length)
            if first >= last:
                continue
            file, places = self._shard(fragment.file)
            start = places[entry_name(kind, parameter)].start + 4 * (first - fragment.offset)
            file.read_into(start, data[4 * (first - offset) : 4 * (last - offset)])
            filled += last - first
        assert filled == out.numel(), f"{parameter}: {filled} of {out.numel()} elements were read"

    def read_whole(self, parameter: str, kind: StateKind) -> Tensor:
        """Return a whole parameter in its shape."""
        record = self.index.parameters[parameter]
        values = torch.empty(record.numel, dtype=torch.float32)
        self.read(parameter, kind, 0, values)
        return values.view(record.shape)

    def _shard(self, name: str) -> tuple[VerifiedFile, dict[str, TensorPlace]]:
        if name not in self._shards:
            file = VerifiedFile(self.checkpoint / name, self.index.files[name])
            self._shards[name] = file, read_shard_header(file, name, self.index)
        return self._shards[name]

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._shards.values():
            file.close()
        self._shards.clear()

    def __enter__(self) -> "StateReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
