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

FP32_BYTES = 4


@dataclass(frozen=True)
class Plan:
    """The figures of a dry run; bytes are per rank.

    Attributes:
        memory: part of the device's memory -> bytes at its peak.
        host_memory: part that offload keeps in host memory -> bytes.
        communication: collective -> payload bytes per outer step; the inner loop adds none.
    """

    world_size: int
    n_parameters: int
    ar_tokens_per_step: int
    meta_tokens_per_step: int
    tasks_per_rank: int
    rows_per_rank: int
    memory: dict[str, int]
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
    uses_tasks = smlmt.hybrid_ratio > 0
    rows_per_rank = math.ceil(training.global_batch_size / world_size)
    contexts = smlmt.n_way * (smlmt.k_shot + smlmt.q_query)
    share = 1 / world_size

    weights = total * compute_bytes
    memory = {
        "weights": round(weights * share) if stage == 3 else weights,
        # in fp32 below stage 3 the outer loop reads the weights in place
        "full fp32 copy of the weights": FP32_BYTES * total if stage == 3 or compute_bytes < FP32_BYTES else 0,
        "outer gradient, fp32": FP32_BYTES * total,
        "gradient handed to DeepSpeed": weights,
        "reduced gradient": round(weights * share) if stage else 0,
        "fast weights, fp32": _fast_copies(meta.inner_steps) * FP32_BYTES * adapted if uses_tasks else 0,
        "inner gradient, fp32": FP32_BYTES * (adapted if uses_tasks and smlmt.hybrid_ratio == 1 else total),
        "weights cast for compute": weights if compute_bytes < FP32_BYTES else 0,
        "activations (estimate)": _activation_bytes(twin, config, rows_per_rank, uses_tasks),
    }
    optimizer = {
        "master weights": round(FP32_BYTES * total * share) if stage else 0,
        "AdamW moments": round(2 * FP32_BYTES * total * (share if stage else 1)),
    }
    host_memory = optimizer if offloads(deepspeed_json) else {}
    if not host_memory:
        memory |= optimizer
    return Plan(
        world_size=world_size,
        n_parameters=total,
        ar_tokens_per_step=training.global_batch_size * config.data.sequence_length,
        meta_tokens_per_step=meta.tasks_per_step * contexts * (smlmt.context_tokens + LAYOUT_EXTRA_TOKENS),
        tasks_per_rank=math.ceil(meta.tasks_per_step / world_size),
        rows_per_rank=rows_per_rank,
        memory=memory,
        host_memory=host_memory,
        communication=_communication(stage, weights, world_size),
    )


def _fast_copies(inner_steps: int) -> int:
    """Copies of the fast weights alive at once: none is made for step one, two overlap from the second update on."""
    return min(inner_steps, 2)


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


def _activation_bytes(twin: MetaModel, config: RunConfig, rows_per_rank: int, uses_tasks: bool) -> int:
    """Bytes that the backward pass keeps, traced on the meta device: the larger of an AR and a meta step."""
    dtype = COMPUTE_DTYPE[config.training.precision]
    rows = min(config.training.micro_batch_size, rows_per_rank)
    language_model = saved_bytes(twin, (rows, config.data.sequence_length), dtype, with_logits=True)
    if not uses_tasks:
        return language_model
    smlmt = config.smlmt
    length = smlmt.context_tokens + LAYOUT_EXTRA_TOKENS
    support = saved_bytes(twin, (smlmt.n_way * smlmt.k_shot, length), dtype, with_logits=False)
    query = saved_bytes(twin, (smlmt.n_way * smlmt.q_query, length), dtype, with_logits=False)
    # the prototypes' graph is kept while the inner loop and the query pass build theirs
    kept = support if config.meta.head == "prototype" and config.meta.inner_steps > 0 else 0
    return max(language_model, kept + max(support, query))


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
