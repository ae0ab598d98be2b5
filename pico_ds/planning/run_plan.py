"""Estimates parameters, work, memory and communication of a run, without allocating tensors."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pico_ds.config import RunConfig
from pico_ds.config.deepspeed_config import offloads, zero_stage
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.meta.learners import make_learner
from pico_ds.meta.meta_model_builder import build_model_skeleton
from pico_ds.meta.task_batching import tasks_per_batch
from pico_ds.meta.task_memory import FP32_BYTES, activation_bytes, extra_bytes, task_bytes
from pico_ds.model.language_model_loss import CHUNK_LOGITS
from pico_ds.model.meta_model import MetaModel
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.tasks.hybrid_schedule import StepKind

Phase = StepKind | Literal["update"]


@dataclass(frozen=True)
class Plan:
    """The estimates of a dry run. All bytes are per rank.

    Attributes:
        memory: phase -> part of device memory -> bytes at the peak of the phase. The phases are the gradient of an
            autoregressive step (ar) and of a meta step (meta), and the update after it (update).
        host_memory: part of host memory -> bytes.
        communication: collective -> payload bytes per outer step.
    """

    world_size: int
    n_parameters: int
    ar_tokens_per_step: int
    meta_tokens_per_step: int
    tasks_per_rank: int
    rows_per_rank: int
    memory: dict[Phase, dict[str, int]]
    host_memory: dict[str, int]
    communication: dict[str, int]


def make_plan(config: RunConfig, deepspeed_json: dict[str, Any], vocab_size: int, world_size: int) -> Plan:
    """Return the estimates for a run on `world_size` ranks."""
    skeleton = build_model_skeleton(config.model, config.meta, config.smlmt.n_ways[1], vocab_size)
    sizes = {name: weight.numel() for name, weight in skeleton.named_parameters()}
    total = sum(sizes.values())
    stage, compute_bytes = zero_stage(deepspeed_json), COMPUTE_DTYPE[config.training.precision].itemsize
    smlmt, training, meta = config.smlmt, config.training, config.meta
    rows_per_rank = math.ceil(training.global_batch_size / world_size)
    uses_support = make_learner(meta, skeleton.decoder).pass_counts(step=0).support > 0
    contexts = smlmt.n_ways[1] * (smlmt.q_query + (smlmt.k_shots[1] if uses_support else 0))
    share = 1 / world_size

    weights = total * compute_bytes
    working: dict[Phase, dict[str, int]] = {"ar": _ar_step(skeleton, config, total, rows_per_rank)}
    if config.meta_ratio > 0:
        working["meta"] = _meta_step(skeleton, config, sizes, world_size)
    working["update"] = {
        "gradient handed to DeepSpeed": weights,
        "reduced gradient, flat": round(weights * share) if stage else 0,
        "reduced gradient, fp32": round(FP32_BYTES * total * share) if stage else 0,
    }
    persistent = {
        "weights": round(weights * share) if stage == 3 else weights,
        # below stage 3 the outer loop reads the weights in place and needs no copy
        "full copy of the weights": weights if stage == 3 else 0,
    }
    optimizer = {
        "master weights": round(FP32_BYTES * total * share) if stage else 0,
        "AdamW moments": round(2 * FP32_BYTES * total * (share if stage else 1)),
    }
    host_memory = {"copy of master weights and moments, for checkpoints": round(3 * FP32_BYTES * total * share)}
    if offloads(deepspeed_json):
        host_memory |= optimizer
    else:
        persistent |= optimizer
    return Plan(
        world_size=world_size,
        n_parameters=total,
        ar_tokens_per_step=training.global_batch_size * config.data.sequence_length,
        meta_tokens_per_step=meta.tasks_per_step * contexts * (smlmt.context_tokens + LAYOUT_EXTRA_TOKENS),
        tasks_per_rank=math.ceil(meta.tasks_per_step / world_size),
        rows_per_rank=rows_per_rank,
        memory={phase: {**persistent, **parts} for phase, parts in working.items()},
        host_memory=host_memory,
        communication=communication(stage, weights, world_size),
    )


def _ar_step(skeleton: MetaModel, config: RunConfig, total: int, rows_per_rank: int) -> dict[str, int]:
    dtype, length = COMPUTE_DTYPE[config.training.precision], config.data.sequence_length
    rows = min(config.training.micro_batch_size, rows_per_rank)
    vocab_size, width = skeleton.decoder.de_embedding_proj.weight.shape
    kept, layer = activation_bytes(skeleton, (rows, length), dtype, config)
    activations = kept + dtype.itemsize * rows * length * width
    logits = min(rows * length * vocab_size, CHUNK_LOGITS)
    projection = vocab_size * width
    # the logits of a chunk in fp32, and either a temporary of their normaliser or their gradient
    chunk = max(2 * FP32_BYTES * logits, (FP32_BYTES + extra_bytes(dtype)) * logits + dtype.itemsize * projection)
    loss = FP32_BYTES * projection + chunk
    # when a layer is recomputed, the logits have been freed, but not the gradient of the projection
    recomputed = max(0, layer + dtype.itemsize * projection - loss)
    gradient_sum = _gradient_sum_bytes(dtype, math.ceil(rows_per_rank / rows)) * total
    # after the graph is freed: the gradient of the last micro-batch, and the sum that it is added to
    end = dtype.itemsize * (total + projection) + (FP32_BYTES * total if gradient_sum else 0)
    return {
        "sum of gradients": gradient_sum,
        "activations (estimate)": activations,
        "logits of a chunk and gradient of the output projection": loss,
        "recomputed layer": recomputed,
        "gradient beyond what it replaces": max(0, end - gradient_sum - activations - loss - recomputed),
    }


def _meta_step(skeleton: MetaModel, config: RunConfig, sizes: dict[str, int], world_size: int) -> dict[str, int]:
    meta, learner = config.meta, make_learner(config.meta, skeleton.decoder)
    tasks = min(tasks_per_batch(config, skeleton, on_gpu=True), math.ceil(meta.tasks_per_step / world_size))
    batches = math.ceil(meta.tasks_per_step / world_size / tasks)
    # contributions of the query loss, and of the support features from which the head starts
    feature_gradient = learner.head.reads_features and not learner.shares_weights
    contributions = batches * (2 if feature_gradient else 1)
    # the sum exists from the first of several contributions on, so assume fp32
    gradient_sum = FP32_BYTES * sum(sizes.values()) if contributions > 1 or tasks > 1 else 0
    return {
        "sum of gradients": gradient_sum,
        **{part: tasks * size for part, size in task_bytes(skeleton, config).items()},
    }


def _gradient_sum_bytes(dtype: torch.dtype, contributions: int) -> int:
    """Return the bytes per parameter of the sum of gradients while its last contribution is computed."""
    return (0, dtype.itemsize, FP32_BYTES)[min(contributions, 3) - 1]


def communication(stage: int, weight_bytes: int, world_size: int) -> dict[str, int]:
    """Return the payload bytes per outer step of each collective."""
    if world_size == 1:
        return {}
    if stage == 0:
        return {"all-reduce of the gradient": weight_bytes}
    if stage < 3:
        return {"all-reduce of the gradient": weight_bytes, "all-gather of the updated weights": weight_bytes}
    return {"all-gather of the weights": weight_bytes, "reduce-scatter of the gradient": weight_bytes}
