"""The files of a run, and how it says that it stands; needs nothing that is slow to import."""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pico_ds.errors import FULL
from pico_ds.files import naming, replace_text

State = Literal["running", "finished", "stopped", "failed"]
#: file of a run that names the job which has it
CLAIM_NAME = ".launch.json"


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


def claim_nonce(run: RunDirectory) -> int | None:
    """What tells the start that last claimed a run from others; None where it was never claimed."""
    try:
        return int(json.loads((run.path / CLAIM_NAME).read_bytes())["nonce"])
    except (OSError, ValueError, KeyError):
        return None


class RunStatus(BaseModel):
    """What rank 0 says of its run, at its start and at its end.

    Attributes:
        host, pid, process_started: of rank 0; a killed one says nothing more, but its process is gone [s since the
            epoch].
        at: when it was said [s since the epoch].
        reason: what stopped it, or why it failed.
        nonce: of the start that said it, as in the claim; a claim with another one is of a later start.
    """

    model_config = ConfigDict(frozen=True)

    state: State
    reason: str = ""
    host: str
    pid: int
    process_started: float
    at: float
    nonce: int | None = None

    @classmethod
    def say(cls, run: RunDirectory, state: State, reason: str = "") -> None:
        """Write how the run of this process stands.

        Raises:
            OSError: it cannot be written.
        """
        pid = os.getpid()
        status = cls(
            state=state,
            reason=reason,
            host=socket.gethostname(),
            pid=pid,
            process_started=psutil.Process(pid).create_time(),
            at=time.time(),
            nonce=claim_nonce(run),
        )
        text = status.model_dump_json(indent=1) + "\n"
        try:
            replace_text(run.status, text)
        except OSError as error:
            if error.errno not in FULL or not run.status.exists():
                raise
            # the block that the file has is its own on a full disk, too; blanks are no part of JSON
            with naming(run.status), run.status.open("r+b", buffering=0) as file:
                file.write(text.encode().ljust(run.status.stat().st_size))

    @classmethod
    def read(cls, run: RunDirectory) -> "RunStatus | None":
        """What was said last; None where there is nothing that can be read."""
        try:
            return cls.model_validate_json(run.status.read_bytes())
        except (OSError, ValidationError):
            return None

    @property
    def is_here(self) -> bool:
        """Whether the process was one of this host, so that `is_alive` means something."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether the process that said it still runs."""
        try:
            # the time of boot, from which psutil reckons, moves by parts of a second
            return abs(psutil.Process(self.pid).create_time() - self.process_started) < 5
        except psutil.Error:
            return False
