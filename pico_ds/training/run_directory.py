"""The directory of a run; nothing of an earlier run is ever overwritten."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pico_ds.config import ConfigError
from pico_ds.config.schema import CheckpointingConfig
from pico_ds.engine.distributed import Process


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run's files."""

    path: Path

    @property
    def training_config(self) -> Path:
        """The resolved configuration."""
        return self.path / "training_config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, ranks, device and DeepSpeed's settings."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "logs" / "metrics.jsonl"

    @property
    def train_log(self) -> Path:
        """What was said on the terminal, and when."""
        return self.path / "logs" / "train.log"

    @property
    def logs(self) -> Path:
        """Directory of the logs."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """Directory of the saved weights."""
        return self.path / "checkpoints"

    @property
    def eval_results(self) -> Path:
        """Directory of the evaluations."""
        return self.path / "eval_results"


def claim_run_directory(
    config: CheckpointingConfig, default_name: str, restarted: bool, process: Process
) -> RunDirectory:
    """The directory of the run, the same on every rank, locked against other jobs until this process ends.

    With `checkpointing.run_name` it is made, or taken again to resume. Without, it is `<default_name>-NNN` with the
    next free number; a job that its launcher restarts takes the newest.

    Args:
        restarted: see `is_restart`.

    Raises:
        ConfigError: the directory holds a run that is not to be resumed, is in use, or cannot be made.
    """
    parent = Path(config.runs_dir)
    answer = _claim(config, default_name, restarted) if process.is_main else 0
    # rank 0 alone looks and locks; the others wait for its answer
    answer = process.from_main(answer)
    name = config.run_name or _numbered(default_name, max(answer, 0))
    path = parent / name
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
    if answer == _FAILED:
        raise ConfigError(f"checkpointing.runs_dir: cannot write to {parent.absolute()}; choose a writable directory")
    return RunDirectory(path)


def is_restart(process: Process) -> bool:
    """Whether a launcher (torchrun, SLURM) starts this very job again after a failure or a requeue. A collective.

    With several nodes torchrun counts the restart on the node alone whose rank failed.
    """
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return process.any_rank(any(int(count) > 0 for count in counts))


_TAKEN, _FAILED, _IN_USE, _FOREIGN = -1, -2, -3, -4
#: a job that is restarted may overlap with its own end
_RESTART_LOCK_SECONDS = 60.0
#: held until the process ends, by rank 0
_locks: list[FileLock] = []


def _numbered(name: str, number: int) -> str:
    return f"{name}-{number:03d}"


def _claim(config: CheckpointingConfig, default_name: str, restarted: bool) -> int:
    """The number of the run (0 for a named one), or why there is none."""
    parent = Path(config.runs_dir)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if config.run_name is not None:
            return _claim_named(parent / config.run_name, config.resume, restarted)
        taken = [
            int(match.group(1))
            for path in parent.iterdir()
            if (match := re.fullmatch(rf"{re.escape(default_name)}-(\d+)", path.name))
        ]
        if taken and restarted:
            return max(taken) if _lock(parent / _numbered(default_name, max(taken)), restarted) else _IN_USE
        number = max(taken, default=0) + 1
        while True:
            try:
                (parent / _numbered(default_name, number)).mkdir()
            except FileExistsError:
                number += 1
            else:
                return number if _lock(parent / _numbered(default_name, number), restarted) else _IN_USE
    except OSError:
        return _FAILED


def _claim_named(path: Path, resume: int | str, restarted: bool) -> int:
    path.mkdir(exist_ok=True)
    used = any(child.name != _LOCK_NAME for child in path.iterdir())
    if used and not restarted:
        if not RunDirectory(path).training_config.exists():
            return _FOREIGN
        own = resume == "auto" or isinstance(resume, int) or Path(resume).resolve().is_relative_to(path.resolve())
        if not own:
            return _TAKEN
    return 0 if _lock(path, restarted) else _IN_USE


_LOCK_NAME = ".lock"


def _lock(path: Path, restarted: bool) -> bool:
    lock = FileLock(path / _LOCK_NAME)
    try:
        lock.acquire(timeout=_RESTART_LOCK_SECONDS if restarted else 0)
    except Timeout:
        return False
    _locks.append(lock)
    return True
