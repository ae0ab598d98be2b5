"""The cost model with given figures of GPUs: what a configuration would take on clusters that are not at hand."""

import argparse
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pico_ds.benchmark.cluster import ASSUMPTIONS, Cluster, assumptions
from pico_ds.benchmark.cost_model import ring, together
from pico_ds.config import ConfigError, RunConfig, load_config
from pico_ds.config.deepspeed import load_deepspeed_config, zero_stage
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.meta.building import build_twin
from pico_ds.meta.learners import make_learner
from pico_ds.model.flops import context_flops, language_model_flops
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.training.plan import communication, make_plan

Row = dict[str, Any]

PROJECTION = "scaling: projection"

#: bytes a parameter of the update (docs/performance.md): of the whole gradient on every rank, and of a rank's share
_UPDATE_BYTES_WHOLE, _UPDATE_BYTES_SHARED = 8, 50


def projection_of(arguments: argparse.Namespace, repository: Path) -> list[Row]:
    """What the options of the command ask for, after what is assumed.

    Raises:
        ConfigError: a configuration that cannot be read, or whose vocabulary is not given.
    """
    cluster = Cluster(**{field.name: getattr(arguments, field.name) for field in fields(Cluster)})
    config = load_config(arguments.projected_config, arguments.projected_set)
    jsons = [load_deepspeed_config(repository / "ds_configs" / f"zero{stage}.json") for stage in (1, 2, 3)]
    rows = project(config, arguments.projected_config.stem, jsons, sorted(arguments.gpus), cluster)
    of_config = {
        "command": ASSUMPTIONS,
        "assumed": "config",
        "value": str(arguments.projected_config),
        "source": "given",
    }
    return [of_config, *assumptions(cluster), *rows]


def project(
    config: RunConfig, name: str, deepspeed_jsons: list[dict[str, Any]], gpus: list[int], cluster: Cluster
) -> list[Row]:
    """Steps of both kinds on so many GPUs each, with the batch of the configuration and with one that grows with them.

    Raises:
        ConfigError: a configuration whose vocabulary is not given.
    """
    if config.model.vocab_size is None:
        raise ConfigError(
            f"{name}: model.vocab_size is not given, and the work of a step depends on it; set it, as configs/pico-* do"
        )
    # of a single rank: what it does are the units of all
    plan = make_plan(config, deepspeed_jsons[0], config.model.vocab_size, world_size=1)
    units = {"ar": plan.rows_per_rank, **({"meta": plan.tasks_per_rank} if config.meta_ratio > 0 else {})}
    tokens = {"ar": plan.ar_tokens_per_step, "meta": plan.meta_tokens_per_step}
    flops = {"ar": _row_flops(config), "meta": _task_flops(config)}
    twin = build_twin(config.model, config.meta, config.smlmt.n_ways[1], config.model.vocab_size)
    sizes = [weight.numel() for weight in twin.parameters()]
    return [
        _projected(
            _Batch(kind, batch, round(factor * count), tokens[kind] // count, flops[kind]),
            config,
            deepspeed_json,
            sizes,
            n,
            cluster,
        )
        for kind, count in units.items()
        for batch in ("fixed", "grown")
        for deepspeed_json in deepspeed_jsons
        for n in gpus
        for factor in [1 if batch == "fixed" else n / min(gpus)]
    ]


def collective_calls(deepspeed_json: dict[str, Any], sizes: list[int]) -> dict[str, int]:
    """How often DeepSpeed calls a collective in an outer step, beside those of a few numbers.

    Args:
        sizes: elements of every parameter, in the order of the model.
    """
    stage, zero = zero_stage(deepspeed_json), deepspeed_json["zero_optimization"]
    # 500 million is DeepSpeed's own default
    buckets = _buckets(sizes[::-1], zero.get("reduce_bucket_size", 500_000_000))
    if stage == 0:
        return {"all-reduce": 1}
    if stage < 3:
        # one for each group of the optimizer: with and without weight decay
        return {"all-reduce": buckets, "all-gather": 2}
    return {"all-gather": len(sizes), "reduce-scatter": buckets}


def _buckets(sizes: list[int], limit: int) -> int:
    """Filled one after another; a parameter that is larger has one of its own."""
    count, filled = 0, limit
    for size in sizes:
        if filled + size > limit:
            count, filled = count + 1, 0
        filled += size
    return count


@dataclass(frozen=True)
class _Batch:
    """Of a step of all ranks; a unit is a row or a task, which no two ranks share."""

    kind: str
    batch: str
    units: int
    tokens_per_unit: int
    flops_per_unit: float


def _projected(
    batch: _Batch, config: RunConfig, deepspeed_json: dict[str, Any], sizes: list[int], gpus: int, cluster: Cluster
) -> Row:
    model, tokens, total = cluster.model(gpus), batch.units * batch.tokens_per_unit, sum(sizes)
    stage, weight_bytes = zero_stage(deepspeed_json), total * COMPUTE_DTYPE[config.training.precision].itemsize
    calls = collective_calls(deepspeed_json, sizes)
    collectives = [
        ring(kind, payload, gpus, calls[kind])
        for name, payload in communication(stage, weight_bytes, gpus).items()
        for kind in [name.split(" of ")[0]]
    ]
    # of the rank that has most to do
    step = together(collectives, {batch.kind: math.ceil(batch.units / gpus) * batch.flops_per_unit})
    update_bytes = total * (_UPDATE_BYTES_WHOLE + _UPDATE_BYTES_SHARED / gpus)
    compute = model.compute_seconds(step) + update_bytes / cluster.memory_gb_per_second / 1e9
    communicated = model.communication_seconds(step)
    seconds, overlapped = compute + communicated, max(compute, communicated)
    # passes alone, shared by all GPUs to the last FLOP
    ideal = batch.units * batch.flops_per_unit / gpus / model.flops_per_second[batch.kind]
    return {
        "command": PROJECTION,
        "kind": batch.kind,
        "batch": batch.batch,
        "stage": stage,
        "gpus": gpus,
        "tokens_per_step": tokens,
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "efficiency": ideal / seconds,
        "communication_share": communicated / seconds,
        "overlapped_seconds": overlapped,
        "overlapped_share": (overlapped - compute) / overlapped,
        "compute_bound_seconds": sum(step.flops.values()) / cluster.peak_tflops / 1e12,
        "bandwidth_bound_seconds": step.sent_bytes / cluster.line_gb_per_second(gpus) / 1e9,
        # nobody has measured one of tasks
        "over_critical_batch": tokens / cluster.critical_batch_tokens if batch.kind == "ar" else None,
    }


def _row_flops(config: RunConfig) -> float:
    assert config.model.vocab_size is not None
    return language_model_flops(config.model, config.model.vocab_size, 1, config.data.sequence_length)


def _task_flops(config: RunConfig) -> float:
    model, smlmt = config.model, config.smlmt
    assert model.vocab_size is not None
    decoder = build_twin(model, config.meta, smlmt.n_ways[1], model.vocab_size).decoder
    work = make_learner(config.meta, decoder).work(step=0)
    contexts = smlmt.n_ways[1] * (smlmt.k_shots[1] * work.support + smlmt.q_query * work.query)
    return contexts * context_flops(model, model.vocab_size, smlmt.context_tokens + LAYOUT_EXTRA_TOKENS)
