"""Measures the cost of a snapshot of learning dynamics: stall of training, time to write, bytes and device memory."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pico_ds.config import RunConfig
from pico_ds.config.deepspeed_config import resolve_deepspeed_config
from pico_ds.dynamics.recorder import SnapshotRecorder
from pico_ds.dynamics.snapshot_files import write_snapshot
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.meta.functional_model_builder import build_functional_model
from pico_ds.meta.learners import make_learner
from pico_ds.meta.meta_model_builder import build_meta_model

from .sampling import random_tasks

_GIB = 2**30


def measure_snapshots(
    config: RunConfig, deepspeed_json: dict[str, Any], directory: Path, repeats: int, process: Process
) -> dict[str, Any]:
    """Return the cost of a snapshot on rows and tasks of random words. Times are medians over the repeats.

    One additional repeat comes first and is ignored. Every rank must call this.

    Args:
        directory: directory for the generated corpus and the snapshots.
    """
    smlmt, length = config.smlmt, config.data.sequence_length
    shape = f"n_way: {smlmt.n_ways[1]}, k_shot: {smlmt.k_shots[1]}, q_query: {smlmt.q_query}"
    corpus, tasks = random_tasks(directory, f"{shape}, context_tokens: {smlmt.context_tokens}")
    vocab_size = config.model.vocab_size or corpus.tokenizer.vocab_size
    module = build_meta_model(config.model, config.meta, smlmt.n_ways[1], vocab_size, seed=0)
    largest = max(weight.numel() for weight in module.parameters())
    parameters = sum(weight.numel() for weight in module.parameters())
    settings = resolve_deepspeed_config(deepspeed_json, config, process.world_size)
    engine = MetaEngine(module, config.training, settings, process)
    network = build_functional_model(config, vocab_size, process.device)
    recorder = SnapshotRecorder(
        config,
        network,
        make_learner(config.meta, network.skeleton.decoder),
        corpus.training_rows(length, seed=0),
        corpus.validation_rows(length),
        tasks,
        process,
    )
    stalls, writes, extra, size = [], [], 0, 0
    for repeat in range(repeats + 1):
        process.any_rank(False)  # a barrier, so that all ranks start together
        extra = _device_bytes(process, peak=False)
        started = time.perf_counter()
        snapshot = recorder.take(engine.full_parameters(), repeat, first_row=0)
        stalls.append(time.perf_counter() - started)
        extra = _device_bytes(process, peak=True) - extra
        if process.is_main:
            path = directory / f"snapshot_{repeat}"
            path.mkdir()
            started = time.perf_counter()
            write_snapshot(path, snapshot, corpus.tokenizer)
            writes.append(time.perf_counter() - started)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    dynamics = config.learning_dynamics
    row: dict[str, Any] = {
        "parameters": parameters,
        "ranks": process.world_size,
        "stage": engine.stage,
        "rows": dynamics.n_rows,
        "tasks": dynamics.n_tasks,
        "adaptation_steps": dynamics.adaptation_steps,
        "stall_seconds": median(stalls[1:]),
        "write_seconds": median(writes[1:]) if writes else None,
        "bytes": size,
    }
    if process.device.type == "cuda":
        row |= {"extra_memory_gib": extra / _GIB, "largest_layer_gib": 4 * largest / _GIB}
    return row


def _device_bytes(process: Process, peak: bool) -> int:
    """Return the allocated memory of the device; 0 on CPU.

    With `peak`, return the peak since the last call without `peak`.
    """
    if process.device.type != "cuda":
        return 0
    if peak:
        return torch.cuda.max_memory_allocated(process.device)
    torch.cuda.reset_peak_memory_stats(process.device)
    return torch.cuda.memory_allocated(process.device)
