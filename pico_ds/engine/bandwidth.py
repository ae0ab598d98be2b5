"""Measures the bandwidth between ranks with the collectives that training uses."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from pico_ds.engine.distributed import Process

_REPEATS = 5


@dataclass(frozen=True)
class Transfer:
    """Measured time of one collective at one message size.

    Attributes:
        payload_bytes: size of the whole tensor that is summed or gathered.
        seconds: median time of the slowest rank.
        bus_gb_per_second: data that each rank sends per second, comparable between collectives and world sizes [GB/s].
    """

    collective: str
    payload_bytes: int
    seconds: float
    bus_gb_per_second: float


def measure_transfers(process: Process, sizes_bytes: list[int]) -> list[Transfer]:
    """Return the times of all-reduce and all-gather at each size; empty with one rank. Every rank must call this."""
    import deepspeed.comm as dist

    transfers, world = [], process.world_size
    for size in sizes_bytes if world > 1 else []:
        part = torch.zeros(max(1, size // 4 // world), device=process.device)
        whole = torch.zeros(part.numel() * world, device=process.device)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "all-reduce": (lambda whole=whole: dist.all_reduce(whole), 2),  # type: ignore[misc]
            "all-gather": (lambda whole=whole, part=part: dist.all_gather_into_tensor(whole, part), 1),  # type: ignore[misc]
        }
        for name, (call, passes) in calls.items():
            seconds = _median_seconds(process, call)
            sent = passes * (world - 1) / world * whole.nbytes
            transfers.append(Transfer(name, whole.nbytes, seconds, sent / seconds / 1e9))
    return transfers


def _median_seconds(process: Process, call: Callable[[], object]) -> float:
    call()  # the first call sets up connections
    times = []
    for _ in range(_REPEATS):
        process.wait_for_all()
        _wait_for_device(process)
        started = time.perf_counter()
        call()
        _wait_for_device(process)
        nanoseconds = int((time.perf_counter() - started) * 1e9)
        times.append(max(value for (value,) in process.gather([nanoseconds])) / 1e9)
    return median(times)


def _wait_for_device(process: Process) -> None:
    if process.device.type == "cuda":
        torch.cuda.synchronize(process.device)
