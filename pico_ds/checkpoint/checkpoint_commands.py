"""Finds, verifies and consolidates checkpoints, for scripts/checkpoint.py."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pico_ds.checkpoint.checkpoint_index import INDEX_HASH_NAME, INDEX_NAME, STATE_DIRECTORY, Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.huggingface_export import write_parameters
from pico_ds.checkpoint.safetensors_reader import VerifiedFile
from pico_ds.checkpoint.sharded_state_reader import StateReader, read_shard_header
from pico_ds.errors import CheckpointError, describe_os_error
from pico_ds.file_writing import may_exist
from pico_ds.progress import progress


def find_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints at a path: a checkpoint, a run, or the `checkpoints` directory of a run.

    Damaged checkpoints are included, even if they have no index. Interrupted saves are not included.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    if may_exist(path / STATE_DIRECTORY):
        return [path]
    for directory in (path, path / "checkpoints"):
        try:
            if found := CheckpointStore(directory).directories():
                return found
        except OSError as error:
            raise CheckpointError(describe_os_error(error, directory)) from error
    raise CheckpointError(
        f"{path}: is not a checkpoint and contains none; give runs/<name>/checkpoints/step_<N>, or a run"
    )


def verify(checkpoint: Path) -> Iterator[str]:
    """Yield every problem of a checkpoint. This reads the index and all files."""
    try:
        index = Index.read(checkpoint)
    except CheckpointError as error:
        yield str(error)
        return
    with progress(f"verifying {checkpoint}, bytes", sum(record.size_bytes for record in index.files.values())) as work:
        for name in index.files:
            yield from _problems_of_file(checkpoint, index, name, work.advance)
    yield from _unlisted_files(checkpoint, index)


def _unlisted_files(checkpoint: Path, index: Index) -> Iterator[str]:
    listed = {*index.files, f"{STATE_DIRECTORY}/{INDEX_NAME}", f"{STATE_DIRECTORY}/{INDEX_HASH_NAME}"}
    try:
        for path in sorted(checkpoint.rglob("*")):
            if not path.is_dir() and path.relative_to(checkpoint).as_posix() not in listed:
                yield f"{path}: is not part of the checkpoint; pico_ds ignores it, but transformers may read it"
    except OSError as error:
        yield describe_os_error(error, checkpoint)


def _problems_of_file(checkpoint: Path, index: Index, name: str, on_bytes: Callable[[int], None]) -> Iterator[str]:
    try:
        file = VerifiedFile(checkpoint / name, index.files[name])
    except CheckpointError as error:
        yield str(error)
        return
    try:
        file.verify(on_bytes)
        if any(fragment.file == name for record in index.parameters.values() for fragment in record.fragments):
            read_shard_header(file, name, index)
    except CheckpointError as error:
        yield str(error)
    finally:
        file.close()


def consolidate(checkpoint: Path, out: Path) -> int:
    """Write the fp32 master weights of all shards into one safetensors file. Memory holds one tensor at a time.

    Returns:
        the number of parameters written.

    Raises:
        CheckpointError: the checkpoint is damaged, or the file exists or cannot be written.
    """
    if out.exists():
        raise CheckpointError(f"{out}: already exists; choose another file")
    partial = out.with_name(f".{out.name}.partial")
    partial.unlink(missing_ok=True)
    with StateReader(checkpoint) as reader:
        try:
            write_parameters(reader, reader.index.parameters, partial, torch.float32)
            partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)
        return sum(record.numel for record in reader.index.parameters.values())
