"""Rank, device and small collectives of this process."""

import gc
import os
import socket
import sys
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import CodeType

import torch

from pico_ds.config import ConfigError

#: time for the threads of gloo to free their tensors before the interpreter shuts down
_GLOO_GRACE_SECONDS = 0.5
#: smallest time limit of a collective: other ranks wait in one while rank 0 prepares the corpus
_MIN_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
#: name of an entry in DeepSpeed's table of ops
_SHARED_MEMORY_OP = "deepspeed_shm_comm"


#: environment variables that `start_process` has set because no launcher did
_own_variables: dict[str, str] = {}


class StartedCollectives:
    """Counts the collectives that this rank has started. If a rank hangs, the other ranks start at least one more."""

    def __init__(self) -> None:
        self.count = 0
        self._code: CodeType | None = None
        self._line = 0

    def add(self) -> None:
        """Count a collective, and record the line outside of this module that started it."""
        self.count += 1
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        self._code, self._line = frame.f_code, frame.f_lineno

    @property
    def last(self) -> str:
        """Function, file and line that started the newest collective; empty if there is none."""
        if self._code is None:
            return ""
        return f"{self._code.co_qualname} ({'/'.join(Path(self._code.co_filename).parts[-3:])}:{self._line})"


@dataclass(frozen=True)
class Process:
    """This process of the job.

    Methods that communicate must be called by every rank, in the same order.

    Attributes:
        rank: 0 to world_size - 1.
        local_rank: rank among the processes of this node.
        device: device on which this process computes.
        peers: (`host_digest`, process id) of every rank.
        started: collectives that this rank has started.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    peers: tuple[tuple[int, int], ...] = ()
    started: StartedCollectives = field(default_factory=StartedCollectives, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files of the run and prints to the terminal."""
        return self.rank == 0

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks in place, and return it."""
        import deepspeed.comm as dist

        if self.world_size > 1:
            self.started.add()
            dist.all_reduce(values)
        return values

    def any_rank(self, condition: bool) -> bool:
        """Return whether a condition is true on at least one rank."""
        return bool(self.sum_over_ranks(torch.tensor([float(condition)], device=self.device)).item())

    def from_main(self, value: int) -> int:
        """Return the value of rank 0."""
        import deepspeed.comm as dist

        if self.world_size == 1:
            return value
        message = torch.tensor([value], dtype=torch.int64, device=self.device)
        self.started.add()
        dist.broadcast(message, src=0)
        return int(message.item())

    def text_from_main(self, text: str) -> str:
        """Return the text of rank 0."""
        import deepspeed.comm as dist

        if self.world_size == 1:
            return text
        content = text.encode()
        length = self.from_main(len(content))
        message = torch.zeros(length, dtype=torch.uint8, device=self.device)
        if self.is_main:
            message.copy_(torch.tensor([*content], dtype=torch.uint8))
        self.started.add()
        dist.broadcast(message, src=0)
        return bytes(message.tolist()).decode()

    def wait_for_all(self) -> None:
        """Wait until every rank has called this."""
        self.started.add()
        _barrier()

    def gather(self, values: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the integers of every rank, in rank order."""
        rows = torch.zeros(self.world_size, len(values), dtype=torch.int64, device=self.device)
        rows[self.rank] = torch.tensor(values)
        return [tuple(row) for row in self.sum_over_ranks(rows).tolist()]

    def gather_texts(self, text: str) -> list[str]:
        """Return the text of every rank, in rank order."""
        content = text.encode()
        longest = max(length for (length,) in self.gather([len(content)]))
        rows = self.gather([*content.ljust(longest, b"\0")])
        return [bytes(row).rstrip(b"\0").decode() for row in rows]

    def select_device(self) -> None:
        """Make the device of this process the current device of the calling thread."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def pinned(self, values: torch.Tensor) -> torch.Tensor:
        """Return a copy in pinned memory, so that copies to the GPU overlap with computation; on CPU, the tensor."""
        return values.pin_memory() if self.device.type == "cuda" else values

    def pin(self, values: torch.Tensor) -> None:
        """Pin host memory in place, so that copies from the GPU overlap with computation. Does nothing on CPU.

        Memory that torch allocates as pinned would be rounded up to a power of two.
        """
        if self.device.type == "cuda" and values.numel() > 0:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(values.data_ptr(), values.nbytes, 0))

    def lost_ranks(self) -> list[int]:
        """Return the ranks of this node whose process has ended."""
        this_host = host_digest()
        return [rank for rank, (host, pid) in enumerate(self.peers) if host == this_host and not _is_alive(pid)]


def collective_timeout(hang_timeout_seconds: float) -> timedelta:
    """Return the time limit of collectives.

    It is longer than the time limit of the watchdog, which ends a job with a report. NCCL would abort the process
    without one.
    """
    return max(_MIN_COLLECTIVE_TIMEOUT, timedelta(seconds=2 * hang_timeout_seconds))


def limit_collectives(timeout: timedelta) -> None:
    """Set the time limit of collectives in all process groups of this process.

    DeepSpeed creates groups with the default limit of torch, which is 10 minutes for NCCL. The list of all groups, and
    the function that sets the limit of one, are private state of torch; `tests/distributed/test_process.py` checks
    their effect.
    """
    for group in torch.distributed.distributed_c10d._world.pg_map:
        torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)


def start_process(timeout: timedelta = _MIN_COLLECTIVE_TIMEOUT) -> Process:
    """Join the job of the launcher (`deepspeed` or `torchrun`). Without a launcher, start a job of one process.

    Args:
        timeout: time limit of a collective.

    Raises:
        ConfigError: this node has more processes than GPUs.
    """
    if "RANK" not in os.environ:
        _own_variables.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
        os.environ.update(_own_variables)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        device, backend = torch.device("cpu"), "gloo"
        _disable_shared_memory_op()
    else:
        if local_rank >= accelerator.device_count():
            raise ConfigError(
                f"local rank {local_rank} has no GPU: this node has {accelerator.device_count()} visible GPUs; start "
                "fewer processes (deepspeed --num_gpus N, torchrun --nproc_per_node N)"
            )
        accelerator.set_device(local_rank)
        device, backend = torch.device(accelerator.device_name(local_rank)), accelerator.communication_backend_name()
    # DeepSpeed calls these collectives by deprecated names, with a warning at every call
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*(all_gather|reduce_scatter).*deprecated")
    # inductor advises TF32, but fp32 must be exact
    warnings.filterwarnings("ignore", category=UserWarning, message="TensorFloat32 tensor cores")
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    process = Process(deepspeed.comm.get_rank(), deepspeed.comm.get_world_size(), local_rank, device)
    return replace(process, peers=tuple((host, pid) for host, pid in process.gather([host_digest(), os.getpid()])))


def is_lost_peer(error: BaseException) -> bool:
    """Return whether a collective failed because another rank has ended. Gloo has no exception type for this."""
    signs = ("/gloo/", "gloo::", "Connection closed by peer")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def host_digest() -> int:
    """Return a number that is equal for two processes if they share one space of process ids.

    A host name is not enough, because containers, and nodes with the same image, may have equal names.
    """
    signs = [socket.gethostname(), _read_or_empty(Path("/proc/sys/kernel/random/boot_id"))]
    try:
        signs.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # the kernel has no namespaces
        signs.append("")
    return zlib.crc32("\n".join(signs).encode())


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def stop_process() -> None:
    """Leave the job. Every rank must call this."""
    import deepspeed.comm as dist

    if dist.is_initialized():
        # After a collective, a thread of gloo frees the tensor, which needs the lock of the interpreter. If the
        # interpreter shuts down at that moment, the rank crashes. A barrier has no tensor.
        _barrier()
        dist.destroy_process_group()
        while _own_variables:
            os.environ.pop(_own_variables.popitem()[0], None)
        if not torch.cuda.is_available():
            # gloo has several threads, and one that did not run the barrier may still hold a tensor
            gc.collect()
            time.sleep(_GLOO_GRACE_SECONDS)


def _barrier() -> None:
    """Wait for all ranks. Names the device, because NCCL would otherwise guess it if there is a single rank."""
    import deepspeed.comm as dist

    dist.barrier(device_ids=[torch.cuda.current_device()] if torch.distributed.get_backend() == "nccl" else None)


def _disable_shared_memory_op() -> None:
    """Make DeepSpeed use only gloo on CPU.

    Its shared-memory op compiles for 25 s, and its ranks wait in a busy loop when another rank dies. This changes
    private state of DeepSpeed, the table of available ops. A version without the table or the entry still works, but
    compiles the op; `tests/distributed/test_engine.py` detects that.
    """
    import deepspeed.ops

    table = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(table, dict) and _SHARED_MEMORY_OP in table:
        table[_SHARED_MEMORY_OP] = False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
