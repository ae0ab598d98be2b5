"""The directory of a run; nothing of an earlier run is ever overwritten."""

from dataclasses import dataclass
from pathlib import Path

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


def claim_run_directory(config: CheckpointingConfig, default_name: str, process: Process) -> RunDirectory:
    """Make the directory of a new run, the same on every rank.

    Without `checkpointing.run_name` it is `<default_name>-NNN` with the next free number.

    Raises:
        ConfigError: `checkpointing.run_name` names a run that exists, or the directory cannot be made.
    """
    parent = Path(config.runs_dir)
    number = -1
    if process.is_main:
        number = _claim(parent, config.run_name, default_name)
    number = process.from_main(number)
    if number == _TAKEN:
        raise ConfigError(
            f"checkpointing.run_name: {parent / (config.run_name or default_name)} already holds a run, which is not "
            "overwritten; choose another name, leave run_name out to get the next free number, or remove the directory"
        )
    if number == _FAILED:
        raise ConfigError(f"checkpointing.runs_dir: cannot write to {parent.absolute()}; choose a writable directory")
    return RunDirectory(parent / (config.run_name or _numbered(default_name, number)))


_TAKEN, _FAILED = -1, -2


def _numbered(name: str, number: int) -> str:
    return f"{name}-{number:03d}"


def _claim(parent: Path, run_name: str | None, default_name: str) -> int:
    """The number of the run (0 for a named one), or why there is none; other ranks wait for the answer."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if run_name is not None:
            path = parent / run_name
            if path.exists() and any(path.iterdir()):
                return _TAKEN
            path.mkdir(exist_ok=True)
            return 0
        number = 1
        while True:
            try:
                (parent / _numbered(default_name, number)).mkdir()
                return number
            except FileExistsError:
                number += 1
    except OSError:
        return _FAILED
