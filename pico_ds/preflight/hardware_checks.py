"""Checks of the devices, the clocks and the network between ranks."""

import os
import time
from statistics import median

import psutil
import torch

from pico_ds.engine.bandwidth import Transfer, measure_transfers
from pico_ds.engine.distributed import Process
from pico_ds.preflight.check_results import Finding, RankResult, gather_finding

#: torchrun compares the clocks of two nodes, and treats a node as dead if its last heartbeat is 15 s old
CLOCK_SKEW_SECONDS = 2.0
_CLOCK_REPEATS = 5
#: if less than this share of the GPU memory is free, another process uses the GPU
_FREE_SHARE = 0.9
_MIB = 2**20


def check_devices(process: Process) -> Finding:
    """Check that the GPU is free and that all ranks see the same number of GPUs with the same memory.

    The finding shows the count, name and memory of the devices. Every rank must call this.
    """
    if process.device.type != "cuda":
        memory = psutil.virtual_memory().total / 2**30
        return gather_finding("devices", RankResult(f"cpu, {os.cpu_count()} cores, {memory:.0f} GiB"), process)
    free, total = torch.cuda.mem_get_info(process.device)
    count, name = torch.cuda.device_count(), torch.cuda.get_device_name(process.device)
    problem = None
    if free < _FREE_SHARE * total:
        problem = (
            f"only {free / 2**30:.1f} of {total / 2**30:.1f} GiB of the GPU are free, because another process uses it; "
            "end that process, or choose other GPUs (CUDA_VISIBLE_DEVICES)"
        )
    finding = gather_finding("devices", RankResult(f"{count} x {name}, {total / 2**30:.0f} GiB", problem), process)
    return Finding(
        finding.check, finding.found, (*finding.problems, *_gpu_differences(process.gather([count, total >> 30])))
    )


def _gpu_differences(nodes: list[tuple[int, ...]]) -> tuple[str, ...]:
    """Return a message if ranks see different numbers of GPUs or GPUs with different memory."""
    kinds = sorted(set(nodes))
    if len(kinds) == 1:
        return ()
    seen = ", ".join(
        f"{count} of {memory_gib} GiB (from rank {nodes.index((count, memory_gib))})" for count, memory_gib in kinds
    )
    return (f"ranks see different GPUs: {seen}; the smallest GPU limits all ranks; use nodes of one kind",)


def check_clocks(process: Process) -> Finding:
    """Measure the clock differences between ranks, read right after a barrier. Every rank must call this."""
    offsets = []
    for _ in range(_CLOCK_REPEATS):
        process.wait_for_all()
        moments = [moment for (moment,) in process.gather([time.time_ns()])]
        offsets.append([(moment - moments[0]) / 1e9 for moment in moments])
    by_rank = [median(rank) for rank in zip(*offsets, strict=True)]
    largest = max(by_rank) - min(by_rank)
    problem = None
    if abs(by_rank[process.rank]) > CLOCK_SKEW_SECONDS:
        problem = (
            f"the clock differs from the clock of rank 0 by {by_rank[process.rank]:+.1f} s, so torchrun may treat a "
            "node as dead; synchronize the clocks (chrony or ntpd)"
        )
    return gather_finding("clocks", RankResult(f"{1000 * largest:.1f} ms apart", problem), process)


def check_network(process: Process, largest_bytes: int, least_gb_per_second: float | None) -> list[Finding]:
    """Measure the bandwidth of all-reduce and all-gather for several message sizes. Every rank must call this.

    The check fails if the best bandwidth of a collective is below `least_gb_per_second`.
    """
    if process.world_size == 1:
        return [Finding("network", "there is only one process")]
    sizes = [size for size in (64 * 2**10, _MIB, 16 * _MIB, 256 * _MIB) if size <= largest_bytes]
    transfers = measure_transfers(process, sizes)
    findings = []
    for name in dict.fromkeys(transfer.collective for transfer in transfers):
        measured = [transfer for transfer in transfers if transfer.collective == name]
        problems = []
        best = max(transfer.bus_gb_per_second for transfer in measured)
        if least_gb_per_second is not None and best < least_gb_per_second:
            problems.append(
                f"{name}: the best bandwidth is {best:.2f} GB/s, but --least_gb_per_second is {least_gb_per_second:g}; "
                "set NCCL_DEBUG=INFO to see which interface and transport NCCL uses (docs/clusters.md)"
            )
        findings.append(Finding(name, "\n".join(map(_shown, measured)), tuple(problems)))
    return findings


def _shown(transfer: Transfer) -> str:
    size = transfer.payload_bytes / 2**10
    text = f"{size:.0f} KiB" if size < 1024 else f"{size / 1024:.0f} MiB"
    return f"{text:>8} {1000 * transfer.seconds:9.2f} ms {transfer.bus_gb_per_second:8.3f} GB/s bus"
