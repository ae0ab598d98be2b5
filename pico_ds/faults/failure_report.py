"""Writes the report of a failed run: a log of every rank, and a summary that names the rank that failed first."""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.engine.distributed import Process, host_digest
from pico_ds.errors import describe_os_error
from pico_ds.file_writing import write_durably
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.runs.run_status import RunStatus

#: why a rank ended: its own error, the death of another rank, or no progress, in its own work or in a collective
Cause = Literal["error", "lost_peer", "hang"]

SUMMARY_NAME = "summary.txt"
#: environment variables that affect how ranks connect. They are listed one by one, because other variables with the
#: same prefixes may contain secrets
_VARIABLES = frozenset(
    {
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID"),
        *("TORCH_DISTRIBUTED_DEBUG", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
        *("TORCH_NCCL_BLOCKING_WAIT", "TORCH_NCCL_TRACE_BUFFER_SIZE", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE"),
        *("NCCL_IB_HCA", "NCCL_IB_GID_INDEX", "NCCL_IB_TIMEOUT", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_DEBUG"),
        *("NCCL_SHM_DISABLE", "NCCL_NET", "NCCL_NET_GDR_LEVEL", "NCCL_CROSS_NIC", "NCCL_ALGO", "NCCL_PROTO"),
        *("GLOO_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING"),
        *("CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS"),
        *("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT"),
    }
)
#: time to wait for the logs of other ranks, before deciding which rank failed first [s]
_SETTLING_SECONDS = 1.5
#: time for a lower rank to notice the failure and to write the summary [s]
_LOWER_RANK_SECONDS = 5.0


@dataclass(frozen=True)
class RankFailure:
    """The failure of one rank, which is the first line of its log.

    Attributes:
        at: time of the failure [s since the epoch].
        step: number of outer steps that the rank had completed.
        collectives: number of collectives that the rank had started.
        last_collective: where in the code it started the newest one.
    """

    rank: int
    cause: Cause
    error: str
    at: float
    step: int
    collectives: int = 0
    last_collective: str = ""


class FailureReport:
    """Writes the log of this rank when it fails, and the summary unless a lower rank writes it.

    Any thread may call `write`. Only the first call has an effect.
    """

    def __init__(self, run: RunDirectory, process: Process, environment: Mapping[str, Any], started: int) -> None:
        """
        Args:
            environment: content of environment.json.
            started: start time of rank 0, equal on every rank [s since the epoch].
        """
        self._run, self._process, self._environment, self._started = run, process, environment, started
        self._directory = run.failures / time.strftime("%Y%m%d-%H%M%S", time.gmtime(started))
        self._lock = threading.Lock()
        self._is_written = False
        self._steps_done: Callable[[], int] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the outer loop has started."""
        return self._steps_done is not None

    def begin(self, steps_done: Callable[[], int]) -> None:
        """Record that the outer loop starts. `steps_done` returns the number of completed outer steps."""
        self._steps_done = steps_done

    def write_from_watchdog(self, reason: str, is_lost_peer: bool) -> None:
        """Write the report for a main thread that makes no progress."""
        self.write(reason, "lost_peer" if is_lost_peer else "hang")

    def write(self, error: BaseException | str, cause: Cause) -> None:
        """Write the log of this rank, and the summary unless a lower rank writes it.

        Args:
            error: the exception, or a message if there is none. With a message, the log has the stacks of all threads.
        """
        with self._lock:
            if self._is_written:
                return
            self._is_written = True
        message = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        steps = 0 if self._steps_done is None else self._steps_done()
        started = self._process.started
        found = RankFailure(self._process.rank, cause, message, time.time(), steps, started.count, started.last)
        path = self._directory / f"rank_{found.rank}.log"
        # the caller raises the error that ended the run, and a full disk must not hide it
        with self._printing_problems():
            if self._process.is_main:
                RunStatus.write(self._run, "failed", message)
        with self._printing_problems():
            self._directory.mkdir(parents=True, exist_ok=True)
            write_durably(path, self._log(found, error).encode(errors="backslashreplace"))
        with self._printing_problems():
            _write_torchrun_error(found, path)
        if self._must_summarize(cause):
            self._summarize(found)

    @contextmanager
    def _printing_problems(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = describe_os_error(error, self._directory)
            print(f"rank {self._process.rank}: cannot record this failure: {problem}", file=sys.stderr, flush=True)

    def _log(self, found: RankFailure, error: BaseException | str) -> str:
        memory = psutil.virtual_memory()
        variables = {name: value for name, value in sorted(os.environ.items()) if name in _VARIABLES}
        lines = [
            json.dumps(asdict(found)),
            "",
            f"rank {found.rank} of {self._process.world_size}, process {os.getpid()} on {socket.gethostname()}, device "
            f"{self._process.device}, {found.at - self._started:.0f} s after the start, {found.step} outer steps done",
            f"collectives started: {found.collectives}, the last one by {found.last_collective or 'none'}",
            f"host memory: {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available; this "
            f"process uses {psutil.Process().memory_info().rss / 2**30:.2f} GiB",
            "",
            _all_stacks() if isinstance(error, str) else "".join(traceback.format_exception(error)),
            *(f"{name}={value}" for name, value in variables.items()),
            "",
            json.dumps(self._environment, indent=1),
        ]
        return "\n".join(lines) + "\n"

    def _must_summarize(self, cause: Cause) -> bool:
        """Return whether this rank must write the summary, because no lower rank has done so in time."""
        if self._process.world_size == 1:
            return True
        is_lowest = set(range(self._process.rank)) <= set(self._process.lost_ranks())
        if cause == "error" and not is_lowest:
            # a lower rank writes the summary when it notices that this rank has died
            return False
        end = time.monotonic() + (_SETTLING_SECONDS if is_lowest else _LOWER_RANK_SECONDS)
        while time.monotonic() < end:
            if self._summary.exists():
                return False
            time.sleep(0.1)
        return True

    @property
    def _summary(self) -> Path:
        return self._directory / SUMMARY_NAME

    def _summarize(self, own: RankFailure) -> None:
        text = self._summary_text(own)
        try:
            with self._summary.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return
        except OSError:
            # the summary is printed below
            pass
        print("\n" + text, end="", file=sys.stderr, flush=True)

    def _summary_text(self, own: RankFailure) -> str:
        others = [failure for failure in read_failures(self._directory) if failure.rank != own.rank]
        failures = sorted([*others, own], key=lambda failure: failure.at)
        logged, dead = {failure.rank for failure in failures}, set(self._process.lost_ranks())
        this_host = host_digest()
        alive = {rank for rank, (host, _) in enumerate(self._process.peers) if host == this_host} - dead
        first, rest = describe_first_failure(failures, sorted(dead - logged), sorted(alive - logged))
        lines = ["the run failed", f"  first      {first}"]
        lines += [f"  others     {text}" for text in rest]
        lines += [f"  logs       {self._directory}/rank_<rank>.log, {self._run.train_log}"]
        if stacks := sorted(path.name for path in self._run.logs.glob("stacks_rank_*.txt") if path.stat().st_size):
            lines.append(f"  stacks     {', '.join(stacks)} in {self._run.logs}")
        steps = CheckpointStore(self._run.checkpoints).steps()
        where = f"resume from checkpoints/step_{max(steps)}" if steps else "start over: there is no checkpoint"
        lines.append(f"  next       run the same command with checkpointing.run_name={self._run.path.name} to {where}")
        return "\n".join(lines) + "\n"


def _write_torchrun_error(found: RankFailure, log: Path) -> None:
    """Write the error and its time for torchrun, whose report otherwise has no message and may blame a later rank."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        content = {"message": f"{found.error}; see {log}", "timestamp": int(found.at)}
        Path(file).write_text(json.dumps(content), encoding="utf-8")


def read_failures(directory: Path) -> list[RankFailure]:
    """Return the failures that the ranks of a failed start have logged, in order of time."""
    found = []
    for path in directory.glob("rank_*.log"):
        try:
            with path.open(encoding="utf-8") as file:
                found.append(RankFailure(**json.loads(file.readline())))
        except (OSError, ValueError, TypeError):
            # on a full disk the log is empty or truncated
            continue
    return sorted(found, key=lambda failure: failure.at)


def describe_first_failure(failures: list[RankFailure], dead: list[int], silent: list[int]) -> tuple[str, list[str]]:
    """Return a sentence about the rank that failed first, and sentences about the other ranks.

    Of the ranks without progress, the ranks that have started the fewest collectives are the cause, because the other
    ranks wait for them. The stack of a rank does not show this: NCCL collectives return at once, and a rank waits
    wherever it next reads a result from its device.

    Args:
        failures: logged failures, in order of time.
        dead: ranks of this node that died without a log.
        silent: ranks of this node that are alive and have no log.
    """
    hung = sorted((failure for failure in failures if failure.cause == "hang"), key=lambda failure: failure.collectives)
    behind = [failure for failure in hung if hung[0].collectives == failure.collectives < hung[-1].collectives]
    own = [failure for failure in failures if failure.cause == "error"] + behind
    sentences = [_sentence(failure) for failure in own]
    sentences += [f"rank {rank} died without an error message: killed by a signal, or out of memory" for rank in dead]
    if behind:
        last = behind[0].last_collective or "none"
        sentences.append(
            f"other ranks wait in {hung[-1].last_collective}; rank {behind[0].rank} has only reached {last}"
        )
    if not sentences and hung:
        sentences = [f"rank {rank} hangs outside of Python, and the other ranks waited for it" for rank in silent]
    if not sentences:
        own = (hung or failures)[:1]
        sentences = [_sentence(own[0])]
    if len(hung) > 1 and not behind and own == hung[:1]:
        sentences.append(f"all ranks with a log wait in {hung[0].last_collective}: the network or a device hangs")
    followed = sorted(failure.rank for failure in failures if failure not in own)
    if followed:
        shown = ", ".join(map(str, followed[:8])) + (" ..." if len(followed) > 8 else "")
        sentences.append(f"rank {shown} ended as a result, after {max(failure.step for failure in failures)} steps")
    return sentences[0], sentences[1:]


def _sentence(failure: RankFailure) -> str:
    return f"rank {failure.rank}, after {failure.step} steps: {failure.error}"


def _all_stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
