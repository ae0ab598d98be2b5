"""What a run will cost: parameters, work per step, memory and communication per rank. Nothing is allocated."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pico_ds.config import RunConfig
from pico_ds.config.deepspeed import offloads, zero_stage
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.model.meta_model import DECODER, OUTPUT_PROJECTION, MetaModel, build_twin
from pico_ds.training.assembly import COMPUTE_DTYPE
from pico_ds.training.state import StepKind

FP32_BYTES = 4


@dataclass(frozen=True)
class Plan:
    """The figures of a dry run; bytes are per rank.

    Attributes:
        memory: kind of step -> part of the device's memory -> bytes when the step needs most.
        host_memory: part that is kept in host memory -> bytes.
        communication: collective -> payload bytes per outer step; the inner loop adds none.
    """

    world_size: int
    n_parameters: int
    ar_tokens_per_step: int
    meta_tokens_per_step: int
    tasks_per_rank: int
    rows_per_rank: int
    memory: dict[StepKind, dict[str, int]]
    host_memory: dict[str, int]
    communication: dict[str, int]


def make_plan(config: RunConfig, deepspeed_json: dict[str, Any], vocab_size: int, world_size: int) -> Plan:
    """Count the costs of a run on `world_size` ranks."""
    twin = build_twin(config.model, config.meta, config.smlmt.n_way, vocab_size)
    sizes = {name: weight.numel() for name, weight in twin.named_parameters()}
    total = sum(sizes.values())
    adapted = sum(size for name, size in sizes.items() if name.startswith(DECODER) and name != OUTPUT_PROJECTION)
    stage, compute_bytes = zero_stage(deepspeed_json), COMPUTE_DTYPE[config.training.precision].itemsize
    smlmt, training, meta = config.smlmt, config.training, config.meta
    rows_per_rank = math.ceil(training.global_batch_size / world_size)
    contexts = smlmt.n_way * (smlmt.k_shot + smlmt.q_query)
    share = 1 / world_size

    weights = total * compute_bytes
    working: dict[StepKind, dict[str, int]] = {"ar": _ar_step(twin, config, total, rows_per_rank)}
    if smlmt.hybrid_ratio > 0:
        working["meta"] = _meta_step(twin, config, adapted)
    lasting = {
        "weights": round(weights * share) if stage == 3 else weights,
        # in fp32 below stage 3 the outer loop reads the weights in place
        "full fp32 copy of the weights": FP32_BYTES * total if stage == 3 or compute_bytes < FP32_BYTES else 0,
        "outer gradient, fp32": FP32_BYTES * total,
        "gradient handed to DeepSpeed": weights,
        "reduced gradient": round(weights * share) if stage else 0,
    }
    optimizer = {
        "master weights": round(FP32_BYTES * total * share) if stage else 0,
        "AdamW moments": round(2 * FP32_BYTES * total * (share if stage else 1)),
    }
    host_memory = {"copy of master weights and moments, for checkpoints": round(3 * FP32_BYTES * total * share)}
    if offloads(deepspeed_json):
        host_memory |= optimizer
    else:
        lasting |= optimizer
    return Plan(
        world_size=world_size,
        n_parameters=total,
        ar_tokens_per_step=training.global_batch_size * config.data.sequence_length,
        meta_tokens_per_step=meta.tasks_per_step * contexts * (smlmt.context_tokens + LAYOUT_EXTRA_TOKENS),
        tasks_per_rank=math.ceil(meta.tasks_per_step / world_size),
        rows_per_rank=rows_per_rank,
        memory={kind: {**lasting, **parts} for kind, parts in working.items()},
        host_memory=host_memory,
        communication=_communication(stage, weights, world_size),
    )


def _ar_step(twin: MetaModel, config: RunConfig, total: int, rows_per_rank: int) -> dict[str, int]:
    dtype, length = COMPUTE_DTYPE[config.training.precision], config.data.sequence_length
    rows = min(config.training.micro_batch_size, rows_per_rank)
    vocab_size = twin.decoder.de_embedding_proj.out_features
    # the backward of log-softmax holds the fp32 gradients of its output and of its input at once
    logit_gradients = 2 * FP32_BYTES * rows * length * vocab_size
    activations = saved_bytes(twin, (rows, length), dtype, with_logits=True) + logit_gradients
    return _graph(activations, _cast(total, dtype), FP32_BYTES * total)


def _meta_step(twin: MetaModel, config: RunConfig, adapted: int) -> dict[str, int]:
    dtype, smlmt, meta = COMPUTE_DTYPE[config.training.precision], config.smlmt, config.meta
    length = smlmt.context_tokens + LAYOUT_EXTRA_TOKENS
    support, query = (
        saved_bytes(twin, (smlmt.n_way * per_class, length), dtype, with_logits=False)
        for per_class in (smlmt.k_shot, smlmt.q_query)
    )
    cast = _cast(adapted, dtype)
    # the graph of the first support pass outlives the inner loop: the prototypes are differentiated through it
    keeps = meta.head == "prototype" and meta.inner_steps > 0
    return {
        # a step's gradient becomes the next fast weights in place, so there is one copy
        "fast weights, fp32": FP32_BYTES * adapted if meta.inner_steps else 0,
        "graph of the prototypes (estimate)": support + cast if keeps else 0,
        **_graph(max(support, query), cast, FP32_BYTES * adapted),
    }


def _graph(activations: int, cast: int, gradient: int) -> dict[str, int]:
    """A graph and the gradient taken from it: a backward pass frees the one as it fills the other."""
    return {
        "activations (estimate)": activations,
        "weights cast for compute": cast,
        "gradient beyond the graph it replaces, fp32": max(0, gradient - activations - cast),
    }


def _cast(count: int, dtype: torch.dtype) -> int:
    return count * dtype.itemsize if dtype != torch.float32 else 0


def _communication(stage: int, weight_bytes: int, world_size: int) -> dict[str, int]:
    if world_size == 1:
        return {}
    if stage == 0:
        return {"all-reduce of the gradient": weight_bytes}
    if stage < 3:
        return {"all-reduce of the gradient": weight_bytes, "all-gather of the updated weights": weight_bytes}
    return {"all-gather of the weights": weight_bytes, "reduce-scatter of the gradient": weight_bytes}


class _SavedByFlash(torch.autograd.Function):
    """Stands for a flash kernel: saves queries, keys, values, the output and one fp32 number a head and position."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        output = torch.empty_like(queries)
        ctx.save_for_backward(queries, keys, values, output, queries.new_empty(queries.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("only the forward pass is traced")


def saved_bytes(twin: MetaModel, shape: tuple[int, int], dtype: torch.dtype, with_logits: bool) -> int:
    """Bytes of the tensors that autograd saves in one forward pass of a meta-device model, parameters left out."""
    twin = twin.to(dtype)
    parameters = {weight.untyped_storage()._cdata for weight in twin.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        return _SavedByFlash.apply(queries, keys, values)

    tokens = torch.zeros(shape, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = twin.decoder.hidden(tokens, attend=attend)
        if with_logits:
            logits = twin.decoder.de_embedding_proj(hidden).flatten(0, 1).float()
            torch.nn.functional.cross_entropy(logits, tokens.flatten(), reduction="sum")
    return sum(size for size, _ in kept.values())
