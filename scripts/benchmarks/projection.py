"""Projects the cost of a configuration on clusters that are not available, with the cost model and assumed figures."""

import argparse
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pico_ds.config import ConfigError, RunConfig, load_config
from pico_ds.config.deepspeed_config import load_deepspeed_config, zero_stage
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.meta.learners import make_learner
from pico_ds.meta.meta_model_builder import build_model_skeleton
from pico_ds.model.flops import context_flops, language_model_flops
from pico_ds.model.meta_model import MetaModel
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.planning.run_plan import communication

from .cost_model import combine, ring
from .hardware_figures import ASSUMPTIONS, Cluster, assumptions

Row = dict[str, Any]

PROJECTION = "scaling: projection"

#: memory traffic of the update in bytes per parameter (docs/performance.md): for the whole gradient, which every rank
#: handles, and for the share of one rank
_UPDATE_BYTES_WHOLE, _UPDATE_BYTES_SHARED = 8, 50


def projection_of(arguments: argparse.Namespace, repository: Path) -> list[Row]:
    """Return the assumptions and then the projection that the options of the command ask for.

    Raises:
        ConfigError: the configuration cannot be read, or does not set `model.vocab_size`.
    """
    cluster = Cluster(**{field.name: getattr(arguments, field.name) for field in fields(Cluster)})
    config = load_config(arguments.projected_config, arguments.projected_set)
    jsons = [load_deepspeed_config(repository / "ds_configs" / f"zero{stage}.json") for stage in (1, 2, 3)]
    rows = project(config, arguments.projected_config.stem, jsons, sorted(arguments.gpus), cluster)
    named = {"assumed": "config", "value": arguments.projected_config.stem, "source": "--config"}
    return [{"command": ASSUMPTIONS, **named}, *assumptions(cluster), *rows]


def project(
    config: RunConfig, name: str, deepspeed_jsons: list[dict[str, Any]], gpus: list[int], cluster: Cluster
) -> list[Row]:
    """Return the projected cost of steps of both kinds on each number of GPUs.

    Each step is projected with the batch size of the configuration ("fixed"), and with a batch that grows with the
    number of GPUs ("grown"). Meta steps are omitted if the configuration has none.

    Raises:
        ConfigError: the configuration does not set `model.vocab_size`.
    """
    if config.model.vocab_size is None:
        raise ConfigError(
            f"{name}: model.vocab_size is not set, but the work of a step depends on it; set it as in configs/pico-*"
        )
    skeleton = build_model_skeleton(config.model, config.meta, config.smlmt.n_ways[1], config.model.vocab_size)
    sizes = [weight.numel() for weight in skeleton.parameters()]
    steps = [_rows(config), *([_tasks(config, skeleton)] if config.meta_ratio > 0 else [])]
    return [
        _projected(replace(step, units=round(factor * step.units)), config, deepspeed_json, sizes, n, cluster)
        | {"batch": batch}
        for step in steps
        for batch in ("fixed", "grown")
        for deepspeed_json in deepspeed_jsons
        for n in gpus
        for factor in [1 if batch == "fixed" else n / min(gpus)]
    ]


def collective_calls(deepspeed_json: dict[str, Any], sizes: list[int]) -> dict[str, int]:
    """Return the number of calls of each collective in an outer step. Collectives of a few numbers are not counted.

    Args:
        sizes: number of elements of every parameter, in the order of the model.
    """
    stage, zero = zero_stage(deepspeed_json), deepspeed_json["zero_optimization"]
    # 500 million is the default of DeepSpeed
    buckets = _buckets(sizes[::-1], zero.get("reduce_bucket_size", 500_000_000))
    if stage == 0:
        return {"all-reduce": 1}
    if stage < 3:
        # the optimizer has two parameter groups, with and without weight decay, and each needs one all-gather
        return {"all-reduce": buckets, "all-gather": 2}
    return {"all-gather": len(sizes), "reduce-scatter": buckets}


def _buckets(sizes: list[int], limit: int) -> int:
    """Return the number of buckets, filled in order. A parameter larger than `limit` gets a separate bucket."""
    count, filled = 0, limit
    for size in sizes:
        if filled + size > limit:
            count, filled = count + 1, 0
        filled += size
    return count


@dataclass(frozen=True)
class _Step:
    """The work of one step over all ranks. A unit is a row or a task, which is never split between ranks."""

    kind: str
    units: int
    tokens_per_unit: int
    flops_per_unit: float


def _projected(
    step: _Step, config: RunConfig, deepspeed_json: dict[str, Any], sizes: list[int], gpus: int, cluster: Cluster
) -> Row:
    model, tokens, total = cluster.model(gpus), step.units * step.tokens_per_unit, sum(sizes)
    stage, weight_bytes = zero_stage(deepspeed_json), total * COMPUTE_DTYPE[config.training.precision].itemsize
    calls = collective_calls(deepspeed_json, sizes)
    collectives = [
        ring(kind, payload, gpus, calls[kind])
        for name, payload in communication(stage, weight_bytes, gpus).items()
        for kind in [name.split(" of ")[0]]
    ]
    # the duration of the step is that of the rank with the most units
    work = combine(collectives, {step.kind: math.ceil(step.units / gpus) * step.flops_per_unit})
    update_bytes = total * (_UPDATE_BYTES_WHOLE + _UPDATE_BYTES_SHARED / gpus)
    compute = model.compute_seconds(work) + update_bytes / cluster.memory_gb_per_second / 1e9
    communicated = model.communication_seconds(work)
    seconds, overlapped = compute + communicated, max(compute, communicated)
    # the ideal is the time of the passes only, divided evenly over all GPUs
    ideal = step.units * step.flops_per_unit / gpus / model.flops_per_second[step.kind]
    return {
        "command": PROJECTION,
        "kind": step.kind,
        "batch": "",
        "stage": stage,
        "gpus": gpus,
        "tokens_per_step": tokens,
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "efficiency": ideal / seconds,
        "communication_share": communicated / seconds,
        "overlapped_seconds": overlapped,
        "overlapped_share": (overlapped - compute) / overlapped,
        "compute_bound_seconds": sum(work.flops.values()) / cluster.peak_tflops / 1e12,
        "bandwidth_bound_seconds": work.sent_bytes / cluster.line_gb_per_second(gpus) / 1e9,
        # the critical batch size of meta steps is unknown
        "over_critical_batch": tokens / cluster.critical_batch_tokens if step.kind == "ar" else None,
    }


def _rows(config: RunConfig) -> _Step:
    length, vocab_size = config.data.sequence_length, config.model.vocab_size
    assert vocab_size is not None
    flops = language_model_flops(config.model, vocab_size, 1, length)
    return _Step("ar", config.training.global_batch_size, length, flops)


def _tasks(config: RunConfig, skeleton: MetaModel) -> _Step:
    model, smlmt = config.model, config.smlmt
    assert model.vocab_size is not None
    work = make_learner(config.meta, skeleton.decoder).pass_counts(step=0)
    support, query = (smlmt.n_ways[1] * count for count in (smlmt.k_shots[1], smlmt.q_query))
    length = smlmt.context_tokens + LAYOUT_EXTRA_TOKENS
    tokens = length * (query + (support if work.support else 0))
    flops = (support * work.support + query * work.query) * context_flops(model, model.vocab_size, length)
    return _Step("meta", config.meta.tasks_per_step, tokens, flops)
