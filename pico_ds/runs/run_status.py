"""`logs/status.json`: whether a run is running, finished, stopped or failed. Imports nothing that is slow to import."""

import json
import os
import socket
import time
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pico_ds.errors import FULL
from pico_ds.file_writing import naming, replace_text
from pico_ds.runs.run_directory import JOB_FILE_NAME, RunDirectory

State = Literal["running", "finished", "stopped", "failed"]


def job_nonce(run: RunDirectory) -> int | None:
    """What tells the start that last claimed a run from others; None where it was never claimed."""
    try:
        return int(json.loads((run.path / JOB_FILE_NAME).read_bytes())["nonce"])
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
            nonce=job_nonce(run),
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
