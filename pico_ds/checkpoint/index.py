"""`training_state/index.json`: what a checkpoint holds, and what holds it together. See docs/checkpoint-format.md."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from pico_ds.checkpoint.errors import CheckpointError
from pico_ds.checkpoint.stream import CHUNK_BYTES, HASH_NAME, RECOVER, FileRecord, cannot_write

FORMAT_NAME: Literal["pico_ds.training_state"] = "pico_ds.training_state"
#: raised when an older reader would misread what a newer writer leaves
FORMAT_VERSION = 1

STATE_DIRECTORY = "training_state"
INDEX_NAME = "index.json"
#: hash of the index itself, in the form of `xxh128sum`
INDEX_HASH_NAME = "index.xxh128"


class FragmentRecord(BaseModel):
    """Which part of a flattened parameter stands in which file."""

    model_config = ConfigDict(frozen=True, strict=True)

    file: str
    offset: int
    length: int


class ParameterRecord(BaseModel):
    """Whole shape of a parameter, and the fragments that tile it."""

    model_config = ConfigDict(frozen=True, strict=True)

    shape: tuple[int, ...]
    fragments: tuple[FragmentRecord, ...]

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class Index(BaseModel):
    """A checkpoint but for its tensors. Keys that this version does not know are left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal["pico_ds.training_state"] = FORMAT_NAME
    format_version: int = FORMAT_VERSION
    #: outer steps done
    step: int
    #: counts the saves of a run, so that the newest is known without a clock
    save_number: int
    world_size: int
    zero_stage: int
    precision: str
    #: steps that AdamW has taken: skipped outer steps do not count
    optimizer_steps: int
    #: counters of the outer loop, over all ranks
    progress: dict[str, int]
    #: what periodic work carries from step to step
    callbacks: dict[str, Any]
    #: kind, and learning rate of the next step
    schedule: dict[str, Any]
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
        write_durably(directory / INDEX_NAME, text)
        write_durably(directory / INDEX_HASH_NAME, f"{xxhash.xxh3_128_hexdigest(text)}  {INDEX_NAME}\n".encode())

    @classmethod
    def read(cls, checkpoint: Path) -> "Index":
        """Read and check the index of a checkpoint's directory.

        Raises:
            CheckpointError: a directory without an index, or an index that is damaged, of a newer version, or wrong.
        """
        path = checkpoint / STATE_DIRECTORY / INDEX_NAME
        try:
            text = path.read_bytes()
            said = (path.parent / INDEX_HASH_NAME).read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise CheckpointError(
                f"{checkpoint}: is not a complete checkpoint ({error.filename} cannot be read: {error.strerror}); "
                f"{RECOVER}"
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
            elif not (root / path).resolve().is_relative_to(root):
                yield f"the path {name!r} is a link that leads out of the checkpoint"
            if len(record.chunk_hashes) != -(-record.size_bytes // CHUNK_BYTES):
                yield f"{name!r} has {len(record.chunk_hashes)} hashes for {record.size_bytes} bytes"
        for name, parameter in self.parameters.items():
            yield from self._coverage_problems(name, parameter)

    def _coverage_problems(self, name: str, parameter: ParameterRecord) -> Iterator[str]:
        covered = 0
        for fragment in sorted(parameter.fragments, key=lambda fragment: fragment.offset):
            if fragment.file not in self.files:
                yield f"{name}: a fragment is in {fragment.file!r}, which is not listed"
            if fragment.offset != covered or fragment.length < 1:
                yield f"{name}: elements {covered} to {fragment.offset} are held by no fragment, or by two"
            covered = fragment.offset + fragment.length
        if covered != parameter.numel:
            yield f"{name}: {covered} of {parameter.numel} elements are held by a fragment"


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file and bring it to the disk.

    Raises:
        CheckpointError: the disk is full, or not writable.
    """
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _version_of(text: bytes) -> int:
    class Versioned(BaseModel):
        format_version: int

    try:
        return Versioned.model_validate_json(text).format_version
    except ValidationError:
        return 0


def _too_new(path: Path, version: int) -> str:
    return f"{path}: has format version {version}, this pico_ds reads up to {FORMAT_VERSION}; install a newer pico_ds"
