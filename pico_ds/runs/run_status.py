"""The status file of a run, `logs/status.json`. This module has only fast imports."""

import json
import os
import socket
import time
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pico_ds.errors import DISK_FULL_ERRNOS
from pico_ds.file_writing import add_path_to_errors, replace_text
from pico_ds.runs.run_directory import JOB_FILE_NAME, RunDirectory

State = Literal["running", "finished", "stopped", "failed"]


def job_nonce(run: RunDirectory) -> int | None:
    """Return the nonce of the last start that used the run, or None if there is none."""
    try:
        return int(json.loads((run.path / JOB_FILE_NAME).read_bytes())["nonce"])
    except (OSError, ValueError, KeyError):
        return None


class RunStatus(BaseModel):
    """The status of a run, which rank 0 writes at the start and at the end.

    Attributes:
        reason: why the run stopped or failed.
        host, pid, process_started: process of rank 0 and its start time [s since the epoch]. If the process was killed,
            the status remains "running", but the process no longer exists.
        at: time of this status [s since the epoch].
        nonce: nonce of the start that wrote the status. If the job file has another nonce, a later start uses the run.
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
    def write(cls, run: RunDirectory, state: State, reason: str = "") -> None:
        """Write the status of the run of this process.

        Raises:
            OSError: the status cannot be written.
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
            if error.errno not in DISK_FULL_ERRNOS or not run.status.exists():
                raise
            # on a full disk, overwrite the existing bytes in place; JSON ignores the trailing blanks
            with add_path_to_errors(run.status), run.status.open("r+b", buffering=0) as file:
                file.write(text.encode().ljust(run.status.stat().st_size))

    @classmethod
    def read(cls, run: RunDirectory) -> "RunStatus | None":
        """Return the last status, or None if there is no readable one."""
        try:
            return cls.model_validate_json(run.status.read_bytes())
        except (OSError, ValidationError):
            return None

    @property
    def is_here(self) -> bool:
        """Whether the process ran on this host. `is_alive` is only valid if this is true."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether the process that wrote the status is still running."""
        try:
            # psutil computes start times from the boot time, which varies by fractions of a second
            return abs(psutil.Process(self.pid).create_time() - self.process_started) < 5
        except psutil.Error:
            return False
