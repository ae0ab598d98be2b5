"""Chooses and locks the directory of a run. It never overwrites an earlier run."""

import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.config.schema import CheckpointingConfig
from pico_ds.engine.distributed import Process
from pico_ds.errors import ConfigError
from pico_ds.runs.job_identity import JobIdentity
from pico_ds.runs.run_directory import JOB_FILE_NAME, RunDirectory

#: time that a restarted job waits for its previous start to release the lock [s]
_RESTART_LOCK_SECONDS = 60.0
#: time that a rank waits for a file that another node wrote [s]
_SHARED_FILE_SECONDS = 10.0
_LOCK_NAME = ".lock"
#: locks that rank 0 holds until the process ends
_locks: list[FileLock] = []
#: directories that this process created
_created: list[Path] = []


@dataclass(frozen=True)
class RunLock:
    """The directory of a run, locked for this job.

    Attributes:
        first_save_number: smallest save number of the checkpoints of this job, if the job was restarted; else None.
    """

    run: RunDirectory
    first_save_number: int | None

    def discard_if_new(self) -> None:
        """Remove the directory if this process created it, so that a failed start leaves no empty run."""
        if self.run.path in _created:
            shutil.rmtree(self.run.path, ignore_errors=True)

    def release(self) -> None:
        """Let other jobs use the directory."""
        while _locks:
            _locks.pop().release()


class _LockResult(BaseModel):
    """The name of the locked directory, or the message of a `ConfigError`. Rank 0 sends this to the other ranks."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    first_save_number: int | None = None
    error: str = ""


def lock_run_directory(config: CheckpointingConfig, default_name: str, process: Process) -> RunLock:
    """Lock the directory of the run against other jobs until this process ends. A collective.

    With `checkpointing.run_name` the directory is created, or reused to resume. Without, it is `<default_name>-NNN`
    with the next free number. A job that torchrun or SLURM restarts gets the directory of its previous start.

    Raises:
        ConfigError: the directory contains a run that must not be resumed, is in use, cannot be created, or is not
            shared by all nodes.
    """
    parent = Path(config.runs_dir)
    job = JobIdentity.of_this_start(process, process.from_main(secrets.randbits(40)))
    result = _lock(config, default_name, job) if process.is_main else _LockResult()
    result = _LockResult.model_validate_json(process.text_from_main(result.model_dump_json()))
    if result.error:
        raise ConfigError(result.error)
    path = parent / result.name
    if process.any_rank(not _is_visible(path, job.nonce)):
        raise ConfigError(
            f"checkpointing.runs_dir: {parent.absolute()} is not the same directory on every node; choose one on a "
            "file system that all nodes share"
        )
    return RunLock(RunDirectory(path), result.first_save_number)


def _lock(config: CheckpointingConfig, default_name: str, job: JobIdentity) -> _LockResult:
    """Create or reuse the directory, and lock it. Runs on rank 0 only."""
    parent = Path(config.runs_dir)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        name = config.run_name or _numbered_name(parent, default_name, job)
        path = parent / name
        with suppress(FileExistsError):
            path.mkdir()
            _created.append(path)
        previous = JobIdentity.read(path)
        is_restart = job.continues(previous)
        if config.run_name is not None and not is_restart and (error := _run_name_error(path, config.resume)):
            return _LockResult(error=error)
        lock = FileLock(path / _LOCK_NAME)
        try:
            lock.acquire(timeout=_RESTART_LOCK_SECONDS if is_restart else 0)
        except Timeout:
            return _LockResult(
                error=f"checkpointing.run_name: {path} is in use by another job; wait for it, or choose another name"
            )
        _locks.append(lock)
        number = CheckpointStore(RunDirectory(path).checkpoints).next_save_number()
        if is_restart and previous is not None:
            number = previous.first_save_number
        job.model_copy(update={"first_save_number": number}).write(path)
        return _LockResult(name=name, first_save_number=number if is_restart else None)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return _LockResult(
            error=f"checkpointing.runs_dir: cannot write to {parent.absolute()} ({reason}); choose a writable directory"
        )


def _numbered_name(parent: Path, default_name: str, job: JobIdentity) -> str:
    """Return the directory of the previous start of this job, or a new directory with the next free number."""
    names = {
        int(match.group(1)): path.name
        for path in parent.iterdir()
        if (match := re.fullmatch(rf"{re.escape(default_name)}-(\d+)", path.name))
    }
    for number in sorted(names, reverse=True):
        if job.continues(JobIdentity.read(parent / names[number])):
            return names[number]
    number = max(names, default=0)
    while True:
        number += 1
        name = f"{default_name}-{number:03d}"
        try:
            (parent / name).mkdir()
        except FileExistsError:
            continue
        _created.append(parent / name)
        return name


def _run_name_error(path: Path, resume: int | str) -> str | None:
    """Return the error message if a named directory must not be used; else None."""
    found = {child.name for child in path.iterdir()}
    # the partial file remains if the disk was full
    if found <= {_LOCK_NAME, JOB_FILE_NAME, f".{JOB_FILE_NAME}.partial"}:
        return None
    if RunDirectory(path).training_config.name not in found and JOB_FILE_NAME not in found:
        return f"checkpointing.run_name: {path} is not empty and does not contain a run; choose another name"
    if resume == "auto" or isinstance(resume, int) or Path(resume).resolve().is_relative_to(path.resolve()):
        return None
    return (
        f"checkpointing.run_name: {path} already contains a run, which is never overwritten; choose another name, "
        "leave run_name out to use the next number, resume it (checkpointing.resume: auto), or delete the directory"
    )


def _is_visible(run: Path, nonce: int) -> bool:
    """Return whether this rank sees the file that rank 0 wrote."""
    end = time.monotonic() + _SHARED_FILE_SECONDS
    while (job := JobIdentity.read(run)) is None or job.nonce != nonce:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
