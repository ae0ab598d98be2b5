"""Paths of the files of a run. This module has only fast imports."""

from dataclasses import dataclass
from pathlib import Path

#: names the job that uses a run directory (`JobIdentity`)
JOB_FILE_NAME = ".launch.json"


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run, with the paths of its files."""

    path: Path

    @property
    def training_config(self) -> Path:
        """The resolved configuration."""
        return self.path / "training_config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, number of ranks, device and DeepSpeed settings."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """The metrics: one JSON object per line."""
        return self.path / "logs" / "metrics.jsonl"

    @property
    def train_log(self) -> Path:
        """The terminal output with timestamps."""
        return self.path / "logs" / "train.log"

    @property
    def status(self) -> Path:
        """The status of the run (`RunStatus`)."""
        return self.path / "logs" / "status.json"

    @property
    def failures(self) -> Path:
        """Directory of failure reports. Each failed start has a directory with a summary and a log of every rank."""
        return self.path / "logs" / "failures"

    @property
    def wandb_id(self) -> Path:
        """The id of the run at Weights & Biases."""
        return self.path / "logs" / "wandb_run_id"

    @property
    def tensorboard(self) -> Path:
        """Directory of the TensorBoard event files."""
        return self.path / "logs" / "tensorboard"

    @property
    def logs(self) -> Path:
        """Directory of the logs."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def eval_results(self) -> Path:
        """Directory of the evaluation results."""
        return self.path / "eval_results"
