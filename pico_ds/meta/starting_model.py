"""The initial weights of a run."""

import torch

from pico_ds.config import RunConfig
from pico_ds.meta.functional_model import Parameters
from pico_ds.meta.meta_model_builder import build_meta_model
from pico_ds.model.meta_model import MetaModel
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.model.pretrained import load_initial_weights


def initial_module(config: RunConfig, with_source: bool = True) -> MetaModel:
    """Return the model before training: randomly initialized, or loaded from `model.init_from`.

    Args:
        config: must contain `model.vocab_size`.
        with_source: False ignores `model.init_from`.

    Raises:
        ConfigError: `model.init_from` cannot be used.
    """
    assert config.model.vocab_size is not None
    module = build_meta_model(
        config.model, config.meta, config.smlmt.n_ways[1], config.model.vocab_size, config.training.seed
    )
    if config.model.init_from is not None and with_source:
        load_initial_weights(module.decoder, config.model)
    return module


def initial_weights_name(config: RunConfig) -> str:
    """Return the name of the initial weights in tables and figures."""
    return "untrained" if config.model.init_from is None else "initial weights"


def initial_parameters(config: RunConfig, device: torch.device) -> Parameters:
    """Return the initial weights in the run's precision, as the engine holds them."""
    dtype = COMPUTE_DTYPE[config.training.precision]
    module = initial_module(config)
    return {name: weight.detach().to(device, dtype) for name, weight in module.named_parameters()}
