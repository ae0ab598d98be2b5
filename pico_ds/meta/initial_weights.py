"""The weights that a run begins with."""

import torch

from pico_ds.config import RunConfig
from pico_ds.meta.functional_model import Parameters
from pico_ds.meta.meta_model_builder import build_meta_model
from pico_ds.model.meta_model import MetaModel
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.model.pretrained import load_initial_weights


def initial_module(config: RunConfig, with_source: bool = True) -> MetaModel:
    """The model that training begins with: of the seed, and of `model.init_from` where it is given.

    Args:
        config: with the vocabulary filled in.
        with_source: False leaves `model.init_from` alone.

    Raises:
        ConfigError: a `model.init_from` that cannot be used.
    """
    assert config.model.vocab_size is not None
    module = build_meta_model(
        config.model, config.meta, config.smlmt.n_ways[1], config.model.vocab_size, config.training.seed
    )
    if config.model.init_from is not None and with_source:
        load_initial_weights(module.decoder, config.model)
    return module


def initial_weights_name(config: RunConfig) -> str:
    """What the weights before training are called."""
    return "untrained" if config.model.init_from is None else "initial weights"


def initial_parameters(config: RunConfig, device: torch.device) -> Parameters:
    """The untrained weights as the engine held them, in the run's precision."""
    dtype = COMPUTE_DTYPE[config.training.precision]
    module = initial_module(config)
    return {name: weight.detach().to(device, dtype) for name, weight in module.named_parameters()}
