"""Reads, writes and checks the index of a checkpoint, `training_state/index.json` (docs/checkpoint-format.md)."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pico_ds.checkpoint.file_hashes import CHUNK_BYTES, HASH_NAME, FileRecord
from pico_ds.checkpoint.safetensors_reader import RECOVER, open_regular
from pico_ds.checkpoint.safetensors_writer import cannot_write
from pico_ds.errors import CheckpointError
from pico_ds.file_writing import write_durably
from pico_ds.version import __version__

FORMAT_NAME: Literal["pico_ds.training_state"] = "pico_ds.training_state"
#: incremented if an older reader would misread newer checkpoints
FORMAT_VERSION = 1

STATE_DIRECTORY = "training_state"
INDEX_NAME = "index.json"
#: hash of the index, in the format of `xxh128sum`
INDEX_HASH_NAME = "index.xxh128"
#: fp32 master weight and two fp32 moments
BYTES_PER_ELEMENT = 12


_Count = Annotated[int, Field(ge=0)]


class FragmentRecord(BaseModel):
    """A part of a flattened parameter, and the file that contains it."""

    model_config = ConfigDict(frozen=True, strict=True)

    file: str
    offset: _Count
    length: Annotated[int, Field(ge=1)]


class ParameterRecord(BaseModel):
    """Shape of a parameter, and the fragments that cover it."""

    model_config = ConfigDict(frozen=True, strict=True)

    shape: tuple[_Count, ...]
    fragments: tuple[FragmentRecord, ...]

    @property
    def numel(self) -> int:
        """Number of elements of the parameter."""
        return math.prod(self.shape)


class ScheduleRecord(BaseModel):
    """State of the learning rate schedule."""

    model_config = ConfigDict(frozen=True)

    lr_schedule: str
    next_lr: float


class Index(BaseModel):
    """All data of a checkpoint except its tensors. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal["pico_ds.training_state"] = FORMAT_NAME
    format_version: int = FORMAT_VERSION
    #: number of completed outer steps
    step: int
    #: number of the save within the run, which identifies the newest checkpoint without a clock
    save_number: int
    #: save number of the previous checkpoint of the run, or of the checkpoint that it was resumed from
    previous_save_number: int | None = None
    world_size: int
    zero_stage: int
    precision: str
    #: number of AdamW steps; skipped outer steps are not counted
    optimizer_steps: int
    #: counters of the outer loop, over all ranks
    progress: dict[str, int]
    #: state of the callbacks, by class name
    callbacks: dict[str, Any]
    schedule: ScheduleRecord
    #: None, because fp32 and bf16 need no loss scale
    loss_scale: float | None = None
    config: dict[str, Any]
    #: identity of the corpus
    corpus: dict[str, Any]
    environment: dict[str, Any]
    hash: str = HASH_NAME
    chunk_bytes: int = CHUNK_BYTES
    #: all files of the checkpoint except the index, by path relative to the checkpoint
    files: dict[str, FileRecord]
    parameters: dict[str, ParameterRecord]

    def write(self, checkpoint: Path) -> None:
        """Write the index and its hash, and sync them to the disk.

        Raises:
            CheckpointError: the files cannot be written.
        """
        text = (self.model_dump_json(indent=1) + "\n").encode()
        directory = checkpoint / STATE_DIRECTORY
        hash_line = f"{xxhash.xxh3_128_hexdigest(text)}  {INDEX_NAME}\n".encode()
        for name, content in ((INDEX_NAME, text), (INDEX_HASH_NAME, hash_line)):
            try:
                write_durably(directory / name, content)
            except OSError as error:
                raise cannot_write(directory / name, error) from error

    @classmethod
    def read(cls, checkpoint: Path) -> "Index":
        """Read and check the index of a checkpoint.

        Raises:
            CheckpointError: there is no index, or it is damaged, inconsistent, or has a newer format version.
        """
        path = checkpoint / STATE_DIRECTORY / INDEX_NAME
        try:
            with open_regular(path) as file, open_regular(path.parent / INDEX_HASH_NAME) as hash_file:
                text, hash_line = file.read(), hash_file.read().decode("ascii", errors="replace")
        except OSError as error:
            raise CheckpointError(
                f"{checkpoint}: is not a complete checkpoint ({error.filename or path} cannot be read: "
                f"{error.strerror}); {RECOVER}"
            ) from error
        if hash_line.split(" ")[0] != xxhash.xxh3_128_hexdigest(text):
            raise CheckpointError(f"{path}: has changed since it was written (its hash differs); {RECOVER}")
        try:
            index = cls.model_validate_json(text)
        except ValidationError as error:
            version = _version_of(text)
            if version > FORMAT_VERSION:
                raise CheckpointError(_too_new(path, version)) from None
            raise CheckpointError(f"{path}: is not the index of a checkpoint: {error}; {RECOVER}") from None
        if index.format_version > FORMAT_VERSION:
            raise CheckpointError(_too_new(path, index.format_version))
        for problem in index.problems(checkpoint):
            raise CheckpointError(f"{path}: {problem}; {RECOVER}")
        return index

    def problems(self, checkpoint: Path) -> Iterator[str]:
        """Yield the inconsistencies of the index. This does not read the content of files."""
        if (self.hash, self.chunk_bytes) != (HASH_NAME, CHUNK_BYTES):
            yield f"got hash {self.hash} of {self.chunk_bytes} bytes, expected {HASH_NAME} of {CHUNK_BYTES}"
        root = checkpoint.resolve()
        for name, record in self.files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name in {"", "."}:
                yield f"the path {name!r} is outside the checkpoint"
            else:
                yield from _link_problems(root, path)
            if len(record.chunk_hashes) != -(-record.size_bytes // CHUNK_BYTES):
                yield f"{name!r} has {len(record.chunk_hashes)} hashes for {record.size_bytes} bytes"
        file_elements: Counter[str] = Counter()
        for name, parameter in self.parameters.items():
            yield from self._coverage_problems(name, parameter)
            for fragment in parameter.fragments:
                file_elements[fragment.file] += fragment.length
        for name, length in file_elements.items():
            if name in self.files and BYTES_PER_ELEMENT * length > self.files[name].size_bytes:
                yield f"{name!r} has {self.files[name].size_bytes} bytes, too few for its {length} elements"

    def _coverage_problems(self, name: str, parameter: ParameterRecord) -> Iterator[str]:
        covered = 0
        for fragment in sorted(parameter.fragments, key=lambda fragment: fragment.offset):
            if fragment.file not in self.files:
                yield f"{name}: a fragment is in {fragment.file!r}, which is not in the list of files"
            if fragment.offset != covered:
                yield f"{name}: elements {covered} to {fragment.offset} are in no fragment, or in two"
            covered = fragment.offset + fragment.length
        if covered != parameter.numel:
            yield f"{name}: only {covered} of {parameter.numel} elements are in a fragment"


def _link_problems(root: Path, path: PurePosixPath) -> Iterator[str]:
    try:
        if not (root / path).resolve().is_relative_to(root):
            yield f"the path {str(path)!r} is a link to a file outside the checkpoint"
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        yield f"the path {str(path)!r} cannot be resolved ({error})"


def _version_of(text: bytes) -> int:
    class Versioned(BaseModel):
        format_version: int

    try:
        return Versioned.model_validate_json(text).format_version
    except ValidationError:
        return 0


def _too_new(path: Path, version: int) -> str:
    return (
        f"{path}: has format version {version}, but pico_ds {__version__} reads up to {FORMAT_VERSION}; upgrade pico_ds"
    )
