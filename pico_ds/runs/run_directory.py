"""Paths of the files of a run. Imports nothing that is slow to import."""

from dataclasses import dataclass
from pathlib import Path

#: names the job that uses a run directory (`JobIdentity`)
JOB_FILE_NAME = ".launch.json"


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
    def status(self) -> Path:
        """How the run stands, as it says itself (`RunStatus`)."""
        return self.path / "logs" / "status.json"

    @property
    def failures(self) -> Path:
        """A directory for each start that failed: a log of every rank, and a summary."""
        return self.path / "logs" / "failures"

    @property
    def wandb_id(self) -> Path:
        """Id of the run at Weights & Biases."""
        return self.path / "logs" / "wandb_run_id"

    @property
    def tensorboard(self) -> Path:
        """Directory of TensorBoard's event files."""
        return self.path / "logs" / "tensorboard"

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
