"""Processes: who am I, and the few collectives that are not DeepSpeed's own."""

import gc
import os
import socket
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch

from pico_ds.config import ConfigError

#: for gloo's threads to give back what they hold, before the interpreter shuts down
_GLOO_GRACE_SECONDS = 0.5
#: entry of DeepSpeed's table of ops
_SHARED_MEMORY_OP = "deepspeed_shm_comm"


#: variables that `start_process` has set, where no launcher did
_own_variables: dict[str, str] = {}


@dataclass(frozen=True)
class Process:
    """This process among all of the job.

    Attributes:
        rank: 0 to world_size - 1.
        local_rank: rank among the processes of this node.
        device: where this process computes.
        peers: (digest of the host's name, process id) of every rank.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    peers: tuple[tuple[int, int], ...] = ()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files and speaks on the terminal."""
        return self.rank == 0

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum of a tensor over all ranks; one all-reduce, none in a single process."""
        import deepspeed.comm as dist

        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any_rank(self, condition: bool) -> bool:
        """Whether a condition holds on some rank."""
        return bool(self.sum_over_ranks(torch.tensor([float(condition)], device=self.device)).item())

    def from_main(self, value: int) -> int:
        """An integer that rank 0 knows, on every rank."""
        import deepspeed.comm as dist

        if self.world_size == 1:
            return value
        message = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(message, src=0)
        return int(message.item())

    def text_from_main(self, text: str) -> str:
        """A short text that rank 0 knows, on every rank. A collective."""
        import deepspeed.comm as dist

        if self.world_size == 1:
            return text
        content = text.encode()
        length = self.from_main(len(content))
        message = torch.zeros(length, dtype=torch.uint8, device=self.device)
        if self.is_main:
            message.copy_(torch.tensor([*content], dtype=torch.uint8))
        dist.broadcast(message, src=0)
        return bytes(message.tolist()).decode()

    def wait_for_all(self) -> None:
        """Return when every rank has called this. A collective."""
        _barrier()

    def gather(self, values: Sequence[int]) -> list[tuple[int, ...]]:
        """A few integers of every rank, on every rank, by rank."""
        rows = torch.zeros(self.world_size, len(values), dtype=torch.int64, device=self.device)
        rows[self.rank] = torch.tensor(values)
        return [tuple(row) for row in self.sum_over_ranks(rows).tolist()]

    def gather_texts(self, text: str) -> list[str]:
        """A short text of every rank, on every rank, by rank."""
        content = text.encode()
        longest = max(length for (length,) in self.gather([len(content)]))
        rows = self.gather([*content.ljust(longest, b"\0")])
        return [bytes(row).rstrip(b"\0").decode() for row in rows]

    def select_device(self) -> None:
        """Make this process's device the one of the calling thread."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def pinned(self, values: torch.Tensor) -> torch.Tensor:
        """A copy from which a GPU reads beside the computation; the tensor itself on CPU."""
        return values.pin_memory() if self.device.type == "cuda" else values

    def pin(self, values: torch.Tensor) -> None:
        """Lock host memory, so that a GPU copies into it beside the computation; does nothing on CPU.

        Registered in place: memory that torch allocates as pinned is rounded up to a power of two.
        """
        if self.device.type == "cuda" and values.numel() > 0:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(values.data_ptr(), values.nbytes, 0))

    def lost_ranks(self) -> list[int]:
        """Ranks of this node whose process has ended."""
        here = host_digest()
        return [rank for rank, (host, pid) in enumerate(self.peers) if host == here and not _is_alive(pid)]


def start_process(timeout: timedelta = timedelta(minutes=30)) -> Process:
    """Join the job that a launcher (`deepspeed`, `torchrun`) described, or start a job of one process.

    Raises:
        ConfigError: more processes on this node than GPUs.
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
                f"local rank {local_rank} has no GPU: this node shows {accelerator.device_count()}; start fewer "
                "processes (deepspeed --num_gpus N, torchrun --nproc_per_node N)"
            )
        accelerator.set_device(local_rank)
        device, backend = torch.device(accelerator.device_name(local_rank)), accelerator.communication_backend_name()
    # DeepSpeed calls them under their old names, a warning for every call
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*(all_gather|reduce_scatter).*deprecated")
    # fp32 is exact fp32 here, whatever inductor advises
    warnings.filterwarnings("ignore", category=UserWarning, message="TensorFloat32 tensor cores")
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    process = Process(deepspeed.comm.get_rank(), deepspeed.comm.get_world_size(), local_rank, device)
    return replace(process, peers=tuple((host, pid) for host, pid in process.gather([host_digest(), os.getpid()])))


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that a collective failed because another rank has gone; gloo has no type for it."""
    signs = ("/gloo/", "gloo::", "Connection closed by peer")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def host_digest() -> int:
    """A number that tells this node from others: equal where process ids mean the same processes.

    Names alone do not tell: containers, and nodes of one image, may all have the same.
    """
    signs = [socket.gethostname(), _read_or_empty(Path("/proc/sys/kernel/random/boot_id"))]
    try:
        signs.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:  # a kernel without them has one
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
    """Leave the job, together with all other ranks."""
    import deepspeed.comm as dist

    if dist.is_initialized():
        # A rank that ended right after its last collective now and then died of it: gloo's thread was still giving back
        # the tensor, which takes the interpreter's lock, while the interpreter shut down. The barrier has no tensor.
        _barrier()
        dist.destroy_process_group()
        while _own_variables:
            os.environ.pop(_own_variables.popitem()[0], None)
        if not torch.cuda.is_available():
            # gloo has several threads, and the one with the tensor may not be that of the barrier
            gc.collect()
            time.sleep(_GLOO_GRACE_SECONDS)


def _barrier() -> None:
    """A barrier on this process's device: DeepSpeed binds none to the group of a single rank, and NCCL would guess."""
    import deepspeed.comm as dist

    dist.barrier(device_ids=[torch.cuda.current_device()] if torch.distributed.get_backend() == "nccl" else None)


def _disable_shared_memory_op() -> None:
    """Use gloo alone on CPU: DeepSpeed's shared-memory op compiles for 25 s, and its ranks spin when a peer dies.

    Private state of DeepSpeed: the table of ops that it may build. A version without the table or the entry compiles
    the op, which is slow but right; `tests/distributed/test_engine.py` notices.
    """
    import deepspeed.ops

    table = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(table, dict) and _SHARED_MEMORY_OP in table:
        table[_SHARED_MEMORY_OP] = False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
