"""Which directory a run gets; nothing of an earlier run is ever overwritten."""

import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pico_ds.checkpoint.store import CheckpointStore
from pico_ds.config import ConfigError
from pico_ds.config.schema import CheckpointingConfig
from pico_ds.engine.distributed import Process
from pico_ds.training.launch import Launch
from pico_ds.training.run_files import CLAIM_NAME, RunDirectory

__all__ = ["Claim", "RunDirectory", "claim_run_directory"]


@dataclass(frozen=True)
class Claim:
    """A run that is this job's.

    Attributes:
        since: smallest save number of this job's own checkpoints, where it had the run before and is started again;
            else None.
    """

    run: RunDirectory
    since: int | None

    def discard_if_new(self) -> None:
        """Remove the directory if this process has made it: a start that fails leaves no run behind."""
        if self.run.path in _made:
            shutil.rmtree(self.run.path, ignore_errors=True)


def claim_run_directory(config: CheckpointingConfig, default_name: str, process: Process) -> Claim:
    """The directory of the run, the same on every rank, locked against other jobs until this process ends.

    With `checkpointing.run_name` it is made, or taken again to resume. Without, it is `<default_name>-NNN` with the
    next free number. A job that torchrun or SLURM starts again takes the run that it had, and no other. A collective.

    Raises:
        ConfigError: the directory holds a run that is not to be resumed, is in use, cannot be made, or is not the same
            one on every node.
    """
    parent = Path(config.runs_dir)
    launch = Launch.of_this_start(process, process.from_main(secrets.randbits(40)))
    # rank 0 alone looks and locks; the others wait for its answer
    answer, since = _claim(config, default_name, launch) if process.is_main else (0, _ANEW)
    answer, since = process.from_main(answer), process.from_main(since)
    path = parent / (config.run_name or _numbered(default_name, max(answer, 0)))
    if answer == _TAKEN:
        raise ConfigError(
            f"checkpointing.run_name: {path} already holds a run, which is not overwritten; choose another name, leave "
            "run_name out to get the next free number, resume it (checkpointing.resume: auto), or remove the directory"
        )
    if answer == _FOREIGN:
        raise ConfigError(f"checkpointing.run_name: {path} is not empty and holds no run; choose another name")
    if answer == _IN_USE:
        raise ConfigError(
            f"checkpointing.run_name: {path} is in use by another job; wait for it, or choose another name"
        )
    if answer <= _FAILED:
        why = os.strerror(_FAILED - answer)
        raise ConfigError(
            f"checkpointing.runs_dir: cannot write to {parent.absolute()} ({why}); choose a writable directory"
        )
    if process.any_rank(not _is_seen(path, launch.nonce)):
        raise ConfigError(
            f"checkpointing.runs_dir: {parent.absolute()} is not the same directory on every node; choose one on a "
            "file system that all nodes share"
        )
    return Claim(RunDirectory(path), None if since == _ANEW else since)


#: why there is no run; _FAILED less the number of the system's error
_TAKEN, _IN_USE, _FOREIGN, _FAILED = -1, -2, -3, -4
_ANEW = -1
#: a job that is restarted may overlap with its own end
_RESTART_LOCK_SECONDS = 60.0
#: a file made on one node may come late to another
_SHARED_SECONDS = 10.0
#: held until the process ends, by rank 0
_locks: list[FileLock] = []
#: directories that this process has made
_made: list[Path] = []
_LOCK_NAME = ".lock"


def _numbered(name: str, number: int) -> str:
    return f"{name}-{number:03d}"


def _claim(config: CheckpointingConfig, default_name: str, launch: Launch) -> tuple[int, int]:
    """The number of the run (0 for a named one), or why there is none; and the claim's `since`."""
    parent = Path(config.runs_dir)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if config.run_name is None:
            number = _own_number(parent, default_name, launch)
            path = parent / _numbered(default_name, number)
        else:
            number, path = 0, parent / config.run_name
            with suppress(FileExistsError):
                path.mkdir()
                _made.append(path)
        earlier = Launch.read(path)
        restarted = launch.continues(earlier)
        if config.run_name is not None and not restarted and (refusal := _refusal(path, config.resume)):
            return refusal, _ANEW
        lock = FileLock(path / _LOCK_NAME)
        try:
            lock.acquire(timeout=_RESTART_LOCK_SECONDS if restarted else 0)
        except Timeout:
            return _IN_USE, _ANEW
        _locks.append(lock)
        since = CheckpointStore(RunDirectory(path).checkpoints).next_save_number()
        if restarted and earlier is not None:
            since = earlier.first_save_number
        launch.model_copy(update={"first_save_number": since}).write(path)
        return number, since if restarted else _ANEW
    except OSError as error:
        return _FAILED - (error.errno or 0), _ANEW


def _own_number(parent: Path, default_name: str, launch: Launch) -> int:
    """The number of the run that this job had before it was started again; else of one that it makes."""
    taken = sorted(
        int(match.group(1))
        for path in parent.iterdir()
        if (match := re.fullmatch(rf"{re.escape(default_name)}-(\d+)", path.name))
    )
    for number in reversed(taken):
        if launch.continues(Launch.read(parent / _numbered(default_name, number))):
            return number
    number = taken[-1] if taken else 0
    while True:
        number += 1
        path = parent / _numbered(default_name, number)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        _made.append(path)
        return number


def _refusal(path: Path, resume: int | str) -> int | None:
    """Why a named directory is not to be written to."""
    found = {child.name for child in path.iterdir()}
    # the last one is what a full disk left of a claim
    if found <= {_LOCK_NAME, CLAIM_NAME, f".{CLAIM_NAME}.partial"}:
        return None
    if RunDirectory(path).training_config.name not in found and CLAIM_NAME not in found:
        return _FOREIGN
    own = resume == "auto" or isinstance(resume, int) or Path(resume).resolve().is_relative_to(path.resolve())
    return None if own else _TAKEN


def _is_seen(run: Path, nonce: int) -> bool:
    """Whether this rank sees what rank 0 wrote."""
    end = time.monotonic() + _SHARED_SECONDS
    while (launch := Launch.read(run)) is None or launch.nonce != nonce:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
