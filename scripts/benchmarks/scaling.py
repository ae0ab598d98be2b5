"""The part of the scaling benchmark that runs on each rank: steps, the bytes that they send, and bare collectives."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import psutil
import torch

from pico_ds.engine.bandwidth import measure_transfers
from pico_ds.engine.distributed import Process

from .communication import CountCollectives
from .socket_bytes import wire_bytes
from .steps import WARM_UP, StepBenchmark, Workload

Row = dict[str, Any]

COLLECTIVES, STEPS = "scaling: collectives", "scaling: steps"
#: name of a c10d operation -> kind of collective
_NAMES = {"allreduce": "all-reduce", "allgather": "all-gather", "reduce_scatter": "reduce-scatter"}
_SIZES_BYTES = [1 << 12, 1 << 16, 1 << 20, 1 << 23, 1 << 25]


def measure_collectives(process: Process, repeats: int) -> list[Row]:
    """Time collectives of several sizes, from latency-bound to bandwidth-bound. Every rank must call this."""
    # use the minimum, as for steps, because other programs on the machine can only add time
    each = zip(*(measure_transfers(process, _SIZES_BYTES) for _ in range(repeats)), strict=True)
    return [
        {
            "command": COLLECTIVES,
            "ranks": process.world_size,
            "cores": cores(),
            "collective": found.collective,
            "payload_bytes": found.payload_bytes,
            "seconds": found.seconds,
            "bus_gb_per_second": found.bus_gb_per_second,
        }
        for found in (min(repetitions, key=lambda transfer: transfer.seconds) for repetitions in each)
    ]


def measure_scaling(
    build: Callable[[Workload], StepBenchmark],
    workload: Workload,
    strong_units: int,
    steps: int,
    repeats: int,
) -> list[Row]:
    """Measure weak and strong scaling. Every rank must call this.

    In weak scaling every rank has the work of `workload`. In strong scaling the ranks divide a fixed number of units. A
    unit is a micro-batch or a task, so the matrices have the same shapes for any number of units per rank.

    Args:
        strong_units: number of units of all ranks together in strong scaling.
        repeats: number of timings; the result is the shortest timing, and the seconds of the longest.
    """
    weak_units = workload.micro_batches if workload.kind == "lm" else workload.tasks
    rows: list[Row] = []
    benchmark = build(workload)
    world_size = benchmark.process.world_size
    for scaling, units in (("weak", weak_units), ("strong", strong_units // world_size)):
        if rows and units == weak_units:
            # strong scaling has the same steps as weak scaling here, so reuse the measurement
            rows.append({**rows[0], "scaling": scaling})
            continue
        if rows:
            is_lm = workload.kind == "lm"
            benchmark = build(replace(workload, micro_batches=units) if is_lm else replace(workload, tasks=units))
        rows.append({"command": STEPS, "scaling": scaling, **_measure(benchmark, units, steps, repeats)})
    return rows


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(psutil.Process().cpu_affinity())


def _measure(benchmark: StepBenchmark, units: int, steps: int, repeats: int) -> Row:
    process, workload = benchmark.process, benchmark.workload
    for _ in range(WARM_UP):
        benchmark.trainer.take_step()
    taken: list[tuple[float, float, float]] = []
    for _ in range(repeats):
        benchmark.synchronize_ranks()
        started = time.perf_counter(), time.process_time(), _machine_cpu_seconds()
        for _ in range(steps):
            benchmark.trainer.take_step()
        benchmark.trainer.synchronize()
        # CPU seconds of this rank, without the time that it waits for the other ranks at the end
        own = time.process_time() - started[1]
        benchmark.synchronize_ranks()
        taken.append((time.perf_counter() - started[0], own, _machine_cpu_seconds() - started[2]))
    # every rank reports the same repeat, the shortest one of rank 0
    shortest = process.gather([min(range(repeats), key=lambda i: taken[i][0])])[0][0]
    seconds, own, machine = (value / steps for value in taken[shortest])
    longest = max(wall for wall, _, _ in taken) / steps
    cpu_seconds = [nanoseconds / 1e9 for (nanoseconds,) in process.gather([int(own * 1e9)])]
    tokens = workload.rows * workload.length
    tokens *= units * process.world_size * (2 if workload.kind == "task" else 1)
    return {
        "kind": "ar" if workload.kind == "lm" else "fomaml",
        "stage": benchmark.engine.stage,
        "ranks": process.world_size,
        "cores": cores(),
        "threads_per_rank": torch.get_num_threads(),
        "units_per_rank": units,
        "tokens_per_step": tokens,
        "seconds_per_step": seconds,
        "longest_seconds": longest,
        "cpu_seconds_per_rank": mean(cpu_seconds),
        "others_cpu_share": max(0.0, machine - sum(cpu_seconds)) / (seconds * (psutil.cpu_count() or 1)),
        "gflops_per_rank": benchmark.flops() / 1e9,
        **_communication(benchmark),
        "config": benchmark.config.model_dump(),
    }


def _communication(benchmark: StepBenchmark) -> Row:
    """Return the collectives of one step, counted in the dispatcher, and the bytes that the kernel sent and received.

    The bytes are omitted if the kernel does not report them or if the ranks use NCCL.
    """
    benchmark.synchronize_ranks()
    before = wire_bytes()
    with CountCollectives() as counted:
        benchmark.trainer.take_step()
        benchmark.trainer.synchronize()
    after = wire_bytes()
    found: Row = {"collectives": by_kind(counted.calls.items(), counted.bytes)}
    if before is None or after is None or benchmark.process.device.type == "cuda":
        return found  # NCCL bypasses the TCP sockets that the kernel counts
    moved = after.since(before)
    each = benchmark.process.gather([moved.sent, moved.received])
    return {
        **found,
        "sent_bytes": max(sent for sent, _ in each),
        "received_bytes": max(received for _, received in each),
    }


def by_kind(calls: Sequence[tuple[str, int]] | Any, payload_bytes: Any) -> dict[str, dict[str, int]]:
    """Return the calls and payload bytes of each kind of collective. Barriers have no payload and are ignored."""
    found: dict[str, dict[str, int]] = {}
    for operation, count in calls:
        kind = next((kind for name, kind in _NAMES.items() if name in operation), operation)
        total = found.setdefault(kind, {"calls": 0, "payload_bytes": 0})
        total["calls"] += count
        total["payload_bytes"] += payload_bytes[operation]
    return {kind: total for kind, total in found.items() if total["payload_bytes"]}


def _machine_cpu_seconds() -> float:
    """Return the CPU seconds that all processes of this machine have used."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
