"""`training_state/index.json`: what a checkpoint holds, and what holds it together. See docs/checkpoint-format.md."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pico_ds.checkpoint.safetensors_stream import (
    CHUNK_BYTES,
    HASH_NAME,
    RECOVER,
    FileRecord,
    cannot_write,
    open_regular,
)
from pico_ds.errors import CheckpointError
from pico_ds.file_writing import write_durably

FORMAT_NAME: Literal["pico_ds.training_state"] = "pico_ds.training_state"
#: raised when an older reader would misread what a newer writer leaves
FORMAT_VERSION = 1

STATE_DIRECTORY = "training_state"
INDEX_NAME = "index.json"
#: hash of the index itself, in the form of `xxh128sum`
INDEX_HASH_NAME = "index.xxh128"
#: of a parameter: its master weight and two moments, fp32
BYTES_PER_ELEMENT = 12


_Count = Annotated[int, Field(ge=0)]


class FragmentRecord(BaseModel):
    """Which part of a flattened parameter stands in which file."""

    model_config = ConfigDict(frozen=True, strict=True)

    file: str
    offset: _Count
    length: Annotated[int, Field(ge=1)]


class ParameterRecord(BaseModel):
    """Whole shape of a parameter, and the fragments that tile it."""

    model_config = ConfigDict(frozen=True, strict=True)

    shape: tuple[_Count, ...]
    fragments: tuple[FragmentRecord, ...]

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)


class ScheduleRecord(BaseModel):
    """Where the schedule of the learning rate stood."""

    model_config = ConfigDict(frozen=True)

    lr_schedule: str
    next_lr: float


class Index(BaseModel):
    """A checkpoint but for its tensors. Keys that this version does not know are left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal["pico_ds.training_state"] = FORMAT_NAME
    format_version: int = FORMAT_VERSION
    #: outer steps done
    step: int
    #: counts the saves of a run, so that the newest is known without a clock
    save_number: int
    #: that of the checkpoint of this run which the state descends from: the save before, or the one resumed from
    previous_save_number: int | None = None
    world_size: int
    zero_stage: int
    precision: str
    #: steps that AdamW has taken: skipped outer steps do not count
    optimizer_steps: int
    #: counters of the outer loop, over all ranks
    progress: dict[str, int]
    #: what periodic work carries from step to step
    callbacks: dict[str, Any]
    schedule: ScheduleRecord
    #: fp32 and bf16 need none
    loss_scale: float | None = None
    config: dict[str, Any]
    #: what the rows and tasks were drawn from
    corpus: dict[str, Any]
    environment: dict[str, Any]
    hash: str = HASH_NAME
    chunk_bytes: int = CHUNK_BYTES
    #: every file of the checkpoint but the index, by path inside the checkpoint
    files: dict[str, FileRecord]
    parameters: dict[str, ParameterRecord]

    def write(self, checkpoint: Path) -> None:
        """Write the index and its hash to the disk.

        Raises:
            CheckpointError: the disk is full, or not writable.
        """
        text = (self.model_dump_json(indent=1) + "\n").encode()
        directory = checkpoint / STATE_DIRECTORY
        said = f"{xxhash.xxh3_128_hexdigest(text)}  {INDEX_NAME}\n".encode()
        for name, content in ((INDEX_NAME, text), (INDEX_HASH_NAME, said)):
            try:
                write_durably(directory / name, content)
            except OSError as error:
                raise cannot_write(directory / name, error) from error

    @classmethod
    def read(cls, checkpoint: Path) -> "Index":
        """Read and check the index of a checkpoint's directory.

        Raises:
            CheckpointError: a directory without an index, or an index that is damaged, of a newer version, or wrong.
        """
        path = checkpoint / STATE_DIRECTORY / INDEX_NAME
        try:
            with open_regular(path) as file, open_regular(path.parent / INDEX_HASH_NAME) as hash_file:
                text, said = file.read(), hash_file.read().decode("ascii", errors="replace")
        except OSError as error:
            raise CheckpointError(
                f"{checkpoint}: is not a complete checkpoint ({error.filename or path} cannot be read: "
                f"{error.strerror}); {RECOVER}"
            ) from error
        if said.split(" ")[0] != xxhash.xxh3_128_hexdigest(text):
            raise CheckpointError(f"{path}: is not what was written (its hash differs); {RECOVER}")
        try:
            index = cls.model_validate_json(text)
        except ValidationError as error:
            version = _version_of(text)
            if version > FORMAT_VERSION:
                raise CheckpointError(_too_new(path, version)) from None
            raise CheckpointError(f"{path}: is not an index of a checkpoint: {error}; {RECOVER}") from None
        if index.format_version > FORMAT_VERSION:
            raise CheckpointError(_too_new(path, index.format_version))
        for problem in index.problems(checkpoint):
            raise CheckpointError(f"{path}: {problem}; {RECOVER}")
        return index

    def problems(self, checkpoint: Path) -> Iterator[str]:
        """What is wrong with the index itself, whatever the files hold."""
        if (self.hash, self.chunk_bytes) != (HASH_NAME, CHUNK_BYTES):
            yield f"got hash {self.hash} of {self.chunk_bytes} bytes, expected {HASH_NAME} of {CHUNK_BYTES}"
        root = checkpoint.resolve()
        for name, record in self.files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name in {"", "."}:
                yield f"the path {name!r} leads out of the checkpoint"
            else:
                yield from _link_problems(root, path)
            if len(record.chunk_hashes) != -(-record.size_bytes // CHUNK_BYTES):
                yield f"{name!r} has {len(record.chunk_hashes)} hashes for {record.size_bytes} bytes"
        held: Counter[str] = Counter()
        for name, parameter in self.parameters.items():
            yield from self._coverage_problems(name, parameter)
            for fragment in parameter.fragments:
                held[fragment.file] += fragment.length
        for name, length in held.items():
            if name in self.files and BYTES_PER_ELEMENT * length > self.files[name].size_bytes:
                yield f"{name!r} has {self.files[name].size_bytes} bytes, too few for its {length} elements"

    def _coverage_problems(self, name: str, parameter: ParameterRecord) -> Iterator[str]:
        covered = 0
        for fragment in sorted(parameter.fragments, key=lambda fragment: fragment.offset):
            if fragment.file not in self.files:
                yield f"{name}: a fragment is in {fragment.file!r}, which is not listed"
            if fragment.offset != covered:
                yield f"{name}: elements {covered} to {fragment.offset} are held by no fragment, or by two"
            covered = fragment.offset + fragment.length
        if covered != parameter.numel:
            yield f"{name}: {covered} of {parameter.numel} elements are held by a fragment"


def _link_problems(root: Path, path: PurePosixPath) -> Iterator[str]:
    try:
        if not (root / path).resolve().is_relative_to(root):
            yield f"the path {str(path)!r} is a link that leads out of the checkpoint"
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
        yield f"the path {str(path)!r} cannot be followed ({error})"


def _version_of(text: bytes) -> int:
    class Versioned(BaseModel):
        format_version: int

    try:
        return Versioned.model_validate_json(text).format_version
    except ValidationError:
        return 0


def _too_new(path: Path, version: int) -> str:
    return f"{path}: has format version {version}, this pico_ds reads up to {FORMAT_VERSION}; install a newer pico_ds"
