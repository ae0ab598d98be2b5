"""Counts the memory traffic of the update and the syncs of one outer step, by ZeRO stage and kind of step."""

import warnings
from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch

from pico_ds.config import load_config
from pico_ds.config.deepspeed_config import load_deepspeed_config
from pico_ds.engine.distributed import Process
from scripts.benchmarks.steps import StepBenchmark, Workload
from tests.asynchronous_accelerator import asynchronous_accelerator
from tests.memory_traffic import CountTraffic

LM = Workload("lm", rows=2, length=8)
TASK = Workload("task", rows=2, length=8, tasks=2, inner_steps=2, head="prototype")


def benchmark_of(workload: Workload, stage: int, process: Process) -> StepBenchmark:
    small = ["model.n_layers=1", "model.vocab_size=512", "training.precision=bf16", "training.compile=none"]
    config = load_config("configs/pico-maml-tiny.yaml", [*workload.overrides(process.world_size), *small])
    return StepBenchmark(config, load_deepspeed_config(f"ds_configs/zero{stage}.json"), workload, process)


def counted(benchmark: StepBenchmark) -> dict[str, Any]:
    """Memory traffic of the update, and syncs of the whole step."""
    update, step = CountTraffic(), CountTraffic()
    apply = benchmark.engine.apply_gradient

    def watched(*arguments: Any, **others: Any) -> torch.Tensor:
        with update:
            return apply(*arguments, **others)

    benchmark.engine.apply_gradient = watched  # type: ignore[method-assign]
    with step:
        benchmark.trainer.take_step()
    benchmark.engine.apply_gradient = apply  # type: ignore[method-assign]
    parameters = sum(weight.numel() for weight in benchmark.network.skeleton.parameters())
    # an all-reduce on one rank moves nothing
    moved = sum(count for name, count in update.bytes.items() if name != "allreduce_")
    return {"bytes_per_parameter": moved / parameters, "syncs": {**update.syncs, **step.syncs}}


def warned_of_by_cuda(benchmark: StepBenchmark) -> list[str]:
    """The places where CUDA reports a sync in two consecutive steps."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            benchmark.trainer.take_step()
    torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename}:{one.lineno}" for one in caught if "synchronizing" in str(one.message)]


def count_traffic(process: Process) -> dict[str, Any]:
    """Traffic and syncs by ZeRO stage and kind of step."""
    found = {}
    with asynchronous_accelerator() if process.device.type == "cpu" else nullcontext(Counter[str]()) as waits:
        for stage in (1, 2, 3):
            for workload in (LM, TASK):
                benchmark = benchmark_of(workload, stage, process)
                for _ in range(2):
                    benchmark.trainer.take_step()
                waits.clear()
                row = counted(benchmark)
                row["waits"] = dict(waits)
                if process.device.type == "cuda":
                    row["cuda_syncs"] = warned_of_by_cuda(benchmark)
                found[f"zero{stage}/{workload.kind}"] = row
    return found
