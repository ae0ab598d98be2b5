"""The part of a benchmark that runs on each rank: turns the arguments of the command into rows of results."""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pico_ds.config import SmlmtConfig, load_config
from pico_ds.config.deepspeed_config import load_deepspeed_config
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.engine.distributed import Process, start_process, stop_process
from pico_ds.tasks.masked_word_tasks import SMLMT

from .attention import measure_attention
from .checkpoint import CheckpointBenchmark
from .communication import CountCollectives
from .measurements import WORLD_SIZES
from .sampling import measure_sampling, random_tasks
from .scaling import measure_collectives, measure_scaling
from .shards import measure_index, measure_preparation
from .snapshots import measure_snapshots
from .steps import StepBenchmark, Workload

Rows = list[dict[str, Any]]


def measure(arguments: argparse.Namespace, repository: Path) -> None:
    """Run the measurement `arguments.measure`. Rank 0 writes the rows to the file `arguments.worker`."""
    process = start_process()
    found = _MEASUREMENTS[arguments.measure](arguments, repository, process)
    if process.is_main:
        rows = [{"command": arguments.label, **row} for row in found]
        Path(arguments.worker).write_text(json.dumps(rows))
    stop_process()


def _on_gpu(process: Process) -> bool:
    return process.device.type == "cuda"


def _steps(
    arguments: argparse.Namespace, repository: Path, process: Process, workload: Workload, tasks: SMLMT | None = None
) -> dict[str, Any]:
    """Return the results of one workload, and of the baseline that it is compared with."""
    benchmark = _step_benchmark(arguments, repository, process, workload, tasks)
    steps = arguments.steps or (5 if _on_gpu(process) else 1)
    row: dict[str, Any] = {"size": _size(arguments, process), "rows": workload.rows, "length": workload.length}
    if workload.kind == "lm":
        row["micro_batches"] = workload.micro_batches
    else:
        row |= {"tasks": workload.tasks, "inner_steps": workload.inner_steps, "adapt": workload.adapt}
        row["head"] = workload.head
    row |= benchmark.measure(steps, arguments.repeats)
    if arguments.against == "plain":
        row |= benchmark.measure_plain(steps, arguments.repeats, row["seconds_per_step"])
    elif arguments.against == "loop":
        row |= benchmark.measure_loop(row["seconds_per_step"])
    deepspeed_json = load_deepspeed_config(repository / "ds_configs" / f"zero{arguments.stage}.json")
    return {**row, "config": benchmark.config.model_dump(), "deepspeed_config": deepspeed_json}


def _size(arguments: argparse.Namespace, process: Process) -> str:
    return arguments.size or ("1b" if _on_gpu(process) else "tiny")


def _step_benchmark(
    arguments: argparse.Namespace, repository: Path, process: Process, workload: Workload, tasks: SMLMT | None = None
) -> StepBenchmark:
    precision = ["training.precision=bf16"] if _on_gpu(process) else ["training.precision=fp32"]
    family = "pico" if workload.kind == "lm" else "pico-maml"
    overrides = [*workload.overrides(process.world_size), *precision, *arguments.set]
    config = load_config(repository / "configs" / f"{family}-{_size(arguments, process)}.yaml", overrides)
    deepspeed_json = load_deepspeed_config(repository / "ds_configs" / f"zero{arguments.stage}.json")
    return StepBenchmark(config, deepspeed_json, workload, process, tasks)


def _shape(arguments: argparse.Namespace, process: Process, rows: int) -> tuple[int, int]:
    """Return the number of rows and their length in tokens; the defaults are small on CPU."""
    gpu = _on_gpu(process)
    return arguments.rows or (rows if gpu else 4), arguments.length or (2048 if gpu else 128)


def _lm(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    workload = Workload("lm", *_shape(arguments, process, rows=8), micro_batches=arguments.micro_batches)
    return [_steps(arguments, repository, process, workload)]


def _fomaml(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    shape = _shape(arguments, process, rows=4)
    tasks, inner_steps = arguments.tasks or 4, arguments.inner_steps
    workload = Workload("task", *shape, tasks=tasks, inner_steps=inner_steps, head=arguments.head)
    return [_steps(arguments, repository, process, workload)]


def _head(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    workload = Workload("task", *_shape(arguments, process, rows=4), tasks=1, inner_steps=10, adapt="head")
    return [_steps(arguments, repository, process, workload)]


def _tasks(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    arguments.size = arguments.size or "tiny"
    tasks = arguments.tasks or (16 if _on_gpu(process) else 2)
    workload = Workload("task", arguments.rows or 128, arguments.length or 64, tasks=tasks, inner_steps=5)
    return [_steps(arguments, repository, process, workload)]


def _feeding(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    arguments.size, k_shot = arguments.size or "tiny", 4
    length, contexts = arguments.length or 64, k_shot * (arguments.rows or 32)
    shape = f"n_way: {contexts // k_shot}, k_shot: {k_shot}, q_query: {k_shot}"
    _, tasks = random_tasks(arguments.directory, f"{shape}, context_tokens: {length - LAYOUT_EXTRA_TOKENS}")
    count = arguments.tasks or (16 if _on_gpu(process) else 2)
    workload = Workload("task", contexts, length, count, inner_steps=5, head="prototype", k_shot=k_shot)
    return [_steps(arguments, repository, process, workload, tasks)]


def _communication(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    rows = []
    for stage in arguments.stages or range(4):
        for inner_steps, tasks in ((1, 1), (8, 1), (1, 4)):
            workload = Workload("task", rows=4, length=16, tasks=tasks, inner_steps=inner_steps)
            overrides = [*workload.overrides(process.world_size), "training.precision=fp32", "training.compile=none"]
            overrides += arguments.set
            config = load_config(repository / "configs" / "pico-maml-tiny.yaml", overrides)
            deepspeed_json = load_deepspeed_config(repository / "ds_configs" / f"zero{stage}.json")
            benchmark = StepBenchmark(config, deepspeed_json, workload, process)
            benchmark.trainer.take_step()  # the first step may include one-time setup
            with CountCollectives() as counted:
                benchmark.trainer.take_step()
            row: dict[str, Any] = {"stage": stage, "inner_steps": inner_steps, "tasks_per_rank": tasks}
            weight_bytes = 4 * sum(weight.numel() for weight in benchmark.network.skeleton.parameters())
            for name in counted.calls:
                row[name] = f"{counted.calls[name]} x, {counted.bytes[name] / weight_bytes:.3f} P"
            rows.append(row)
    return rows


def _scaling(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    torch.set_num_threads(1)
    rows = measure_collectives(process, arguments.repeats)
    shape, steps = _shape(arguments, process, rows=8), arguments.steps or (5 if _on_gpu(process) else 1)
    micro_batches, tasks = arguments.micro_batches, arguments.tasks or 1
    inner = {"inner_steps": arguments.inner_steps, "head": arguments.head}
    # every world size divides this number, so strong scaling can split the work evenly
    shares = math.lcm(*(arguments.ranks or WORLD_SIZES))
    for stage in arguments.stages or [1]:
        arguments.stage = stage
        build = partial(_step_benchmark, arguments, repository, process)
        lm_workload = Workload("lm", *shape, micro_batches=micro_batches)
        rows += measure_scaling(build, lm_workload, micro_batches * shares, steps, arguments.repeats)
        task_workload = Workload("task", *shape, tasks=tasks, **inner)
        rows += measure_scaling(build, task_workload, tasks * shares, steps, arguments.repeats)
    return rows


def _attention(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    gpu = _on_gpu(process)
    dtype = torch.bfloat16 if gpu else torch.float32
    shapes = [(8, 2048, 16, 4, 128), (8, 2048, 12, 4, 64), (128, 64, 12, 4, 8)] if gpu else [(2, 256, 16, 4, 128)]
    repeats = 20 if gpu else arguments.repeats
    return [
        row
        for batch, length, heads, kv_heads, head_dim in shapes
        for row in measure_attention(process.device, dtype, batch, length, heads, kv_heads, head_dim, repeats)
    ]


def _sampling(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    return measure_sampling(arguments.directory, seconds=float(arguments.repeats))


def _index(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    return measure_index(arguments.directory, arguments.rows or SmlmtConfig().pool_rows, arguments.repeats)


def _prepare(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    return measure_preparation(arguments.directory, arguments.megabytes, arguments.repeats)


def _checkpoint(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    config = load_config(repository / "configs" / f"pico-{arguments.size or 'small'}.yaml", arguments.set)
    assert config.model.vocab_size is not None
    deepspeed_json = load_deepspeed_config(arguments.deepspeed_config)
    benchmark = CheckpointBenchmark(config, deepspeed_json, config.model.vocab_size, process, arguments.directory)
    return benchmark.run(arguments.repeats)


def _snapshots(arguments: argparse.Namespace, repository: Path, process: Process) -> Rows:
    found = []
    # the demo, because anyone can reproduce its cost, and a model of the requested size
    size = arguments.size or ("1b" if _on_gpu(process) else None)
    for name in ["demo", *([f"pico-maml-{size}"] if size else [])]:
        overrides = [f"training.precision={'bf16' if _on_gpu(process) else 'fp32'}", "training.compile=none"]
        if arguments.rows is not None:
            overrides.append(f"learning_dynamics.n_rows={arguments.rows}")
        if arguments.tasks is not None:
            overrides.append(f"learning_dynamics.n_tasks={arguments.tasks}")
        if arguments.length is not None:
            overrides.append(f"data.sequence_length={arguments.length}")
        config = load_config(repository / "configs" / f"{name}.yaml", [*overrides, *arguments.set])
        deepspeed_json = load_deepspeed_config(repository / "ds_configs" / f"zero{arguments.stage}.json")
        directory = arguments.directory / name
        directory.mkdir(exist_ok=True)
        found.append(
            {"config": name, **measure_snapshots(config, deepspeed_json, directory, arguments.repeats, process)}
        )
    return found


_MEASUREMENTS: dict[str, Callable[[argparse.Namespace, Path, Process], Rows]] = {
    "attention": _attention,
    "lm": _lm,
    "fomaml": _fomaml,
    "head": _head,
    "tasks": _tasks,
    "feeding": _feeding,
    "comm": _communication,
    "sampling": _sampling,
    "index": _index,
    "prepare": _prepare,
    "scaling": _scaling,
    "checkpoint": _checkpoint,
    "snapshots": _snapshots,
}
