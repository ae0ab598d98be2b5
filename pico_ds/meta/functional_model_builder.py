"""Builds the functional model of a configuration."""

import logging

import torch

from pico_ds.config import RunConfig
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.meta.functional_model import CompileMode, FunctionalModel
from pico_ds.meta.learners import make_learner
from pico_ds.meta.meta_model_builder import build_model_skeleton
from pico_ds.meta.task_batching import tasks_per_batch
from pico_ds.model.attention_kernels.kernel_choice import AttentionShape, choose_attention, choose_batched_attention
from pico_ds.model.attention_kernels.kernel_loading import math_attention
from pico_ds.model.compilation import why_not_compile
from pico_ds.model.precision import COMPUTE_DTYPE

logger = logging.getLogger("pico_ds")


def build_functional_model(config: RunConfig, vocab_size: int, device: torch.device) -> FunctionalModel:
    """Return the functional model with the configured attention kernel and compilation.

    Raises:
        ConfigError: the configured attention kernel is not available.
    """
    model, dtype = config.model, COMPUTE_DTYPE[config.training.precision]
    heads = (model.attention_n_heads, model.attention_n_kv_heads, model.d_model // model.attention_n_heads)
    shape = AttentionShape(device, dtype, *heads)
    recompute = config.training.activation_checkpointing
    contexts = config.smlmt.context_tokens + LAYOUT_EXTRA_TOKENS
    has_tasks = config.meta_ratio > 0 or config.evaluation.n_tasks > 0
    lengths = sorted({config.data.sequence_length, *([contexts] if has_tasks else [])})
    kernels, attend = choose_attention(model.attention, shape, lengths)
    skeleton = build_model_skeleton(model, config.meta, config.smlmt.n_ways[1], vocab_size, attend, recompute)
    batch_attention = math_attention
    has_separate_weights = not make_learner(config.meta, skeleton.decoder).shares_weights
    if config.meta_ratio and has_separate_weights and tasks_per_batch(config, skeleton, device.type == "cuda") > 1:
        _, batch_attention = choose_batched_attention(kernels[contexts], shape, contexts)
    return FunctionalModel(
        skeleton,
        dtype,
        config.meta.feature_squared_norm,
        compile_mode=_compile_mode(config, device),
        attend_batch=batch_attention,
        tasks_differ=config.smlmt.has_ranges,
    )


def _compile_mode(config: RunConfig, device: torch.device) -> CompileMode:
    if config.training.compile != "auto":
        return config.training.compile
    if device.type != "cuda":
        return "none"
    if (missing := why_not_compile()) is not None:
        logger.warning("warning: training.compile: auto compiles nothing, which is slower: %s", missing)
        return "none"
    return "model"
