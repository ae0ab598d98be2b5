"""Which job this is, so that one that is started again knows its own run from another job's."""

import os
import sys
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pico_ds.data.keyed_random import digest64
from pico_ds.engine.distributed import Process, host_digest
from pico_ds.file_writing import replace_text
from pico_ds.runs.run_directory import JOB_FILE_NAME


class JobIdentity(BaseModel):
    """What the starts of one job have in common.

    Attributes:
        agents: the torchrun agents above the ranks, as (node, process id, time of start [ms]). They live on when they
            start the ranks again; a node may be replaced meanwhile.
        slurm_job: job and command under SLURM, which requeues a job with new processes, maybe on other nodes.
        slurm_restarts: how often it has done so.
        nonce: of this start alone.
        first_save_number: smallest that the job, from its first start on, gives to a checkpoint.
    """

    model_config = ConfigDict(frozen=True)

    agents: frozenset[tuple[int, ...]]
    slurm_job: str | None
    slurm_restarts: int
    nonce: int
    first_save_number: int = 0

    @classmethod
    def of_this_start(cls, process: Process, nonce: int) -> "JobIdentity":
        """The job that this process is a rank of. A collective."""
        agent = (0, 0, 0)
        if "TORCHELASTIC_RESTART_COUNT" in os.environ:
            parent = psutil.Process(os.getppid())
            agent = (host_digest(), parent.pid, int(parent.create_time() * 1000))
        job = os.environ.get("SLURM_JOB_ID")
        return cls(
            agents=frozenset(process.gather(agent)) - {(0, 0, 0)},
            slurm_job=None if job is None else f"{job} {digest64(repr(sys.argv)):016x}",
            slurm_restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            nonce=nonce,
        )

    def continues(self, earlier: "JobIdentity | None") -> bool:
        """Whether this is the same job, started again."""
        if earlier is None:
            return False
        requeued = (
            self.slurm_job is not None
            and self.slurm_job == earlier.slurm_job
            and self.slurm_restarts > earlier.slurm_restarts
        )
        return requeued or not self.agents.isdisjoint(earlier.agents)

    def write(self, run: Path) -> None:
        """Note in a run's directory that it is this job's."""
        replace_text(run / JOB_FILE_NAME, self.model_dump_json() + "\n")

    @classmethod
    def read(cls, run: Path) -> "JobIdentity | None":
        """The job that last had a run; None where there is no such note, or none that can be read."""
        try:
            return cls.model_validate_json((run / JOB_FILE_NAME).read_bytes())
        except (OSError, ValidationError):
            return None
