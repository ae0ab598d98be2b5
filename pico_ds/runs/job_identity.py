"""Identifies jobs, so that a restarted job finds its own run."""

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
    """The identity of a job, from which its later starts recognize it.

    Attributes:
        agents: the torchrun agents of all nodes, as (node, process id, start time [ms]). An agent survives a restart of
            its ranks, but a node may be replaced.
        slurm_job: SLURM job id and a digest of the command. A requeued job has new processes, maybe on other nodes.
        slurm_restarts: number of times that SLURM has requeued the job.
        nonce: random number that identifies this start.
        first_save_number: smallest save number of the checkpoints of this job, counted from its first start.
    """

    model_config = ConfigDict(frozen=True)

    agents: frozenset[tuple[int, ...]]
    slurm_job: str | None
    slurm_restarts: int
    nonce: int
    first_save_number: int = 0

    @classmethod
    def of_this_start(cls, process: Process, nonce: int) -> "JobIdentity":
        """Return the identity of the job of this process. A collective."""
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
        """Return whether this job is a restart of the earlier one."""
        if earlier is None:
            return False
        requeued = (
            self.slurm_job is not None
            and self.slurm_job == earlier.slurm_job
            and self.slurm_restarts > earlier.slurm_restarts
        )
        return requeued or not self.agents.isdisjoint(earlier.agents)

    def write(self, run: Path) -> None:
        """Record in the run directory that this job uses it."""
        replace_text(run / JOB_FILE_NAME, self.model_dump_json() + "\n")

    @classmethod
    def read(cls, run: Path) -> "JobIdentity | None":
        """Return the last job that used a run directory, or None if the record is missing or unreadable."""
        try:
            return cls.model_validate_json((run / JOB_FILE_NAME).read_bytes())
        except (OSError, ValidationError):
            return None
