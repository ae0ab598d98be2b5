"""Builds the model that the outer loop trains."""

import torch

from pico_ds.config import MetaConfig, ModelConfig
from pico_ds.meta.learners import make_learner
from pico_ds.model.attention import Attend, causal_attention
from pico_ds.model.decoder import PicoDecoder, initialize_weights
from pico_ds.model.meta_model import MetaModel
from pico_ds.model.recompute import Recompute

_CPU = torch.device("cpu")


def build_meta_model(
    model: ModelConfig, meta: MetaConfig, n_way: int, vocab_size: int, seed: int, device: torch.device = _CPU
) -> MetaModel:
    """Return a newly initialized model. Its weights depend only on the seed and the kind of device."""
    # skip the default initialization of torch modules, which would double the time
    module = build_model_skeleton(model, meta, n_way, vocab_size).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    initialize_weights(module.decoder, model.initializer_std, generator)
    learner = make_learner(meta, module.decoder)
    with torch.no_grad():
        if hasattr(module, "head"):
            learner.head.initialize(module.head, generator)
        if hasattr(module, "learner"):
            learner.initialize(module.learner)
    return module


def build_model_skeleton(
    model: ModelConfig,
    meta: MetaConfig,
    n_way: int,
    vocab_size: int,
    attend: Attend = causal_attention,
    recompute: Recompute = "none",
) -> MetaModel:
    """Return the module on the meta device, for `torch.func.functional_call`. No hook of DeepSpeed applies to it.

    Args:
        n_way: largest number of classes of a task.

    Raises:
        ConfigError: `meta.adapt` matches no weight of this decoder.
    """
    with torch.device("meta"):
        decoder = PicoDecoder(model, vocab_size)
        learner = make_learner(meta, decoder)
        head = learner.head.module(model.d_model, n_way, vocab_size)
        return MetaModel(decoder, head, learner.module(), attend, recompute)
