"""What can be done with a checkpoint without a run: look at it, verify it, join its shards."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pico_ds.checkpoint.checkpoint_index import INDEX_HASH_NAME, INDEX_NAME, STATE_DIRECTORY, Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.huggingface_export import write_parameters
from pico_ds.checkpoint.safetensors_stream import VerifiedFile
from pico_ds.checkpoint.shard_reader import StateReader, read_shard_header
from pico_ds.errors import CheckpointError, describe_os_error
from pico_ds.file_writing import may_exist
from pico_ds.progress import progress


def find_checkpoints(path: Path) -> list[Path]:
    """The checkpoints that a path stands for: itself, or all of a run or of its `checkpoints` directory.

    A damaged one counts, be its index gone; a save that was cut off does not.

    Raises:
        CheckpointError: there is none.
    """
    if may_exist(path / STATE_DIRECTORY):
        return [path]
    for directory in (path, path / "checkpoints"):
        try:
            if found := CheckpointStore(directory).directories():
                return found
        except OSError as error:
            raise CheckpointError(describe_os_error(error, directory)) from error
    raise CheckpointError(f"{path}: is no checkpoint and holds none; give runs/<name>/checkpoints/step_<N>, or a run")


def verify(checkpoint: Path) -> Iterator[str]:
    """Yield every problem of a checkpoint: the index, the bytes of every file, and what the shards hold."""
    try:
        index = Index.read(checkpoint)
    except CheckpointError as error:
        yield str(error)
        return
    with progress(f"verifying {checkpoint}, bytes", sum(record.size_bytes for record in index.files.values())) as work:
        for name in index.files:
            yield from _problems_of_file(checkpoint, index, name, work.advance)
    yield from _additions(checkpoint, index)


def _additions(checkpoint: Path, index: Index) -> Iterator[str]:
    listed = {*index.files, f"{STATE_DIRECTORY}/{INDEX_NAME}", f"{STATE_DIRECTORY}/{INDEX_HASH_NAME}"}
    try:
        for path in sorted(checkpoint.rglob("*")):
            if not path.is_dir() and path.relative_to(checkpoint).as_posix() not in listed:
                yield f"{path}: is not part of the checkpoint; nothing here reads it, but transformers may"
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
    """Join the fp32 master weights into one safetensors file; one tensor at a time is in memory.

    Returns:
        the number of parameters written.

    Raises:
        CheckpointError: a damaged checkpoint, or a file that exists or cannot be written.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists and is not overwritten; name another file")
    partial = out.with_name(f".{out.name}.partial")
    partial.unlink(missing_ok=True)
    with StateReader(checkpoint) as reader:
        try:
            write_parameters(reader, reader.index.parameters, partial, torch.float32)
            partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)
        return sum(record.numel for record in reader.index.parameters.values())
