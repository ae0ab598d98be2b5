"""Estimates the memory of one task: activations, adapted weights and gradients."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from pico_ds.config import RunConfig
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.meta.learners import make_learner
from pico_ds.model.meta_model import MetaModel, is_body_parameter
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.model.recompute import Recompute

FP32_BYTES = 4


def task_bytes(skeleton: MetaModel, config: RunConfig) -> dict[str, int]:
    """Return the peak bytes of one task, by part."""
    sizes = {name: weight.numel() for name, weight in skeleton.named_parameters()}
    dtype, smlmt = COMPUTE_DTYPE[config.training.precision], config.smlmt
    learner = make_learner(config.meta, skeleton.decoder)
    steps, pass_counts = learner.inner_steps, learner.pass_counts(step=0)
    length = smlmt.context_tokens + LAYOUT_EXTRA_TOKENS
    (support, layer), (query, layer_of_query) = (
        activation_bytes(skeleton, (smlmt.n_ways[1] * per_class, length), dtype, config)
        for per_class in (smlmt.k_shots[1], smlmt.q_query)
    )
    if learner.shares_weights:
        # one forward pass over the support set, if it is used, and the query set
        together = (support if pass_counts.support else 0) + query + max(layer, layer_of_query)
        return {"activations (estimate)": together}
    activations = max(support + layer, query + layer_of_query)
    body = sum(size for name, size in sizes.items() if is_body_parameter(name))
    adapted = sum(sizes[name] for name in learner.adapted)
    # in bf16 a step allocates new fp32 weights; in fp32 the storage of the gradient becomes the new weights
    old = FP32_BYTES * adapted if steps > 1 and dtype != torch.float32 else 0
    # the graph of the first support pass outlives the inner loop, for the gradient through the head's start
    keeps = learner.head.reads_features and steps > 0
    return {
        "fast weights, fp32": FP32_BYTES * adapted if steps else 0,
        "fast weights cast for compute": extra_bytes(dtype) * adapted if steps else 0,
        "graph of the head's start (estimate)": support if keeps else 0,
        "activations (estimate)": activations,
        # a backward pass frees the graph while it fills the gradient
        "gradient and update beyond the graph they replace": max(0, dtype.itemsize * body + old - activations),
    }


def extra_bytes(dtype: torch.dtype) -> int:
    """Return the bytes per parameter of a copy in the compute type; 0 for fp32, which needs no copy."""
    return dtype.itemsize if dtype != torch.float32 else 0


class _SavedByFlash(torch.autograd.Function):
    """Saves the tensors of a flash kernel: queries, keys, values, output, and an fp32 number per head and position."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        output = torch.empty_like(queries)
        ctx.save_for_backward(queries, keys, values, output, queries.new_empty(queries.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("only the forward pass is traced")


def activation_bytes(
    skeleton: MetaModel, shape: tuple[int, int], dtype: torch.dtype, config: RunConfig
) -> tuple[int, int]:
    """Return bytes that autograd holds after a forward pass, and bytes recomputed per layer in the backward pass.

    Some attention kernels need a copy of keys and values for each query head. These copies are included.
    """
    model, recompute = config.model, config.training.activation_checkpointing
    n_layers, head_dim = model.n_layers, model.d_model // model.attention_n_heads
    copied_heads = model.attention_n_heads - model.attention_n_kv_heads
    copies = 2 * n_layers * math.prod(shape) * copied_heads * head_dim * dtype.itemsize
    whole = saved_bytes(skeleton, shape, dtype) + copies
    if recompute == "none":
        return whole, 0
    kept = saved_bytes(skeleton, shape, dtype, recompute) + (copies if recompute == "selective" else 0)
    inputs = n_layers * math.prod(shape) * config.model.d_model * dtype.itemsize
    return kept + inputs, (whole - kept) // n_layers


def saved_bytes(skeleton: MetaModel, shape: tuple[int, int], dtype: torch.dtype, recompute: Recompute = "none") -> int:
    """Return the bytes that autograd saves in one forward pass of a meta-device model, without parameters.

    The inputs of recomputed blocks are not included.
    """
    skeleton = copy.deepcopy(skeleton).to(dtype)
    parameters = {weight.untyped_storage()._cdata for weight in skeleton.parameters()}
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
        hidden = skeleton.decoder.hidden(tokens, attend=attend, recompute=recompute)
    # keep the output alive until here, so that no other tensor reuses the address of its storage
    del hidden
    return sum(size for size, _ in kept.values())
