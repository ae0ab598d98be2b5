"""Checks of the run directory and of the data."""

import json
import os
import secrets
import shutil
import time
from pathlib import Path

from pico_ds.config import RunConfig
from pico_ds.data.corpus import open_corpus
from pico_ds.data.keyed_random import digest64
from pico_ds.engine.distributed import Process
from pico_ds.errors import DataError
from pico_ds.file_writing import write_durably
from pico_ds.preflight.check_results import Finding, RankResult, gather_finding

#: how long to wait for a file of rank 0 [s], because a shared file system may show it late on other nodes
_SHARED_SECONDS = 10.0
_WRITTEN_BYTES = 64 * 2**20
#: fp32 master weights, two fp32 moments, and another copy of the weights
_CHECKPOINT_BYTES_PER_PARAMETER = 16
#: the previous checkpoint must stay on the disk while the next one is written
_CHECKPOINTS = 2
_NONCE_BITS = 40


def check_shared(directory: Path, process: Process) -> Finding:
    """Check that all ranks see a file that rank 0 writes to a directory. Every rank must call this."""
    nonce = process.from_main(secrets.randbits(_NONCE_BITS))
    path = directory / f".preflight-{nonce:x}"
    found, problem = str(directory.absolute()), None
    if process.is_main:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            problem = _not_writable(directory, error)
    if process.any_rank(problem is not None):
        return gather_finding("run directory is shared", RankResult(found, problem), process)
    end = time.monotonic() + _SHARED_SECONDS
    while not (seen := path.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    if not seen:
        problem = (
            f"checkpointing.runs_dir: a file that rank 0 wrote to {directory.absolute()} does not exist here; choose a "
            "directory on a file system that all nodes share"
        )
    finding = gather_finding("run directory is shared", RankResult(found, problem), process)
    if process.is_main:
        path.unlink(missing_ok=True)
    return finding


def check_disk(directory: Path, n_parameters: int, process: Process) -> Finding:
    """Check that two checkpoints fit on the disk, and measure the write speed of each rank while all ranks write.

    Every rank must call this.

    Args:
        n_parameters: number of model parameters; 0 if unknown.
    """
    process.wait_for_all()
    needed = _CHECKPOINTS * _CHECKPOINT_BYTES_PER_PARAMETER * n_parameters
    local = _measure_writing(directory, process.rank, needed)
    return gather_finding("disk of the run directory", local, process)


def check_data(config: RunConfig, process: Process) -> tuple[Finding, int | None]:
    """Check that every rank can open the training data, and that all ranks find the same data.

    Every rank must call this.

    Returns:
        the finding, and the size of the tokenizer's vocabulary, which is None if this rank cannot open the data.
    """
    problem, vocab_size = None, None
    try:
        corpus = open_corpus(config.data)
    except DataError as error:
        found, problem, digest = "cannot be opened", str(error), 0
    else:
        identity, vocab_size = corpus.identity(), corpus.tokenizer.vocab_size
        splits = {name: part for name, part in identity.items() if isinstance(part, dict) and "tokens" in part}
        found = ", ".join(f"{split} {part['tokens']:,} tokens" for split, part in splits.items()) or "token shards"
        # the digest is sent as a signed int64, so it must fit in 63 bits
        digest = digest64(json.dumps(identity)) >> 1
    main_digest = process.from_main(digest)
    if 0 not in (digest, main_digest) and digest != main_digest:
        problem = "the data differ from the data of rank 0; use files on a shared disk, or copy them to all nodes"
    return gather_finding("data", RankResult(found, problem), process), vocab_size


def _measure_writing(directory: Path, rank: int, needed_bytes: int) -> RankResult:
    path = directory / f".preflight-speed-{rank}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
        content = os.urandom(_WRITTEN_BYTES)
        started = time.perf_counter()
        try:
            write_durably(path, content)
            seconds = time.perf_counter() - started
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        return RankResult("cannot be written", _not_writable(directory, error))
    found = f"{free / 2**30:,.1f} GiB free, {_WRITTEN_BYTES / seconds / 1e9:.2f} GB/s per rank while all ranks write"
    if free >= needed_bytes:
        return RankResult(found)
    return RankResult(
        found,
        f"checkpointing.runs_dir: {free / 2**30:,.1f} GiB are free in {directory.absolute()}, but {_CHECKPOINTS} "
        f"checkpoints need {needed_bytes / 2**30:,.1f} GiB; free space, or choose another directory",
    )


def _not_writable(directory: Path, error: OSError) -> str:
    return (
        f"checkpointing.runs_dir: cannot write to {directory.absolute()} ({error.strerror}); choose a writable "
        "directory on a file system that all nodes share"
    )
