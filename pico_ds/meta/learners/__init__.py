"""Learners by name. `LearnerName` in `config/meta_schema.py` lists the names; each is a module of this package."""

from importlib import import_module
from typing import get_args

from pico_ds.config import ConfigError, MetaConfig
from pico_ds.config.meta_schema import LearnerName
from pico_ds.meta.learners.base import EpisodeBatch, Learner, PassCounts, TaskOutcome
from pico_ds.model.decoder import PicoDecoder


def _class_of(name: str) -> type[Learner]:
    module = import_module(f"{__name__}.{name}")
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    learners = [value for value in classes if issubclass(value, Learner)]
    if len(learners) != 1:
        names = ", ".join(value.__name__ for value in learners) or "none"
        raise TypeError(f"{module.__file__} must define exactly one subclass of Learner; found: {names}")
    return learners[0]


LEARNERS: dict[str, type[Learner]] = {name: _class_of(name) for name in get_args(LearnerName)}


def make_learner(config: MetaConfig, decoder: PicoDecoder) -> Learner:
    """Return the learner that `meta.learner` names. Only the parameter names of the decoder are used.

    Raises:
        ConfigError: `meta.adapt` matches no weight of the decoder, or the learner does not support
            `meta.multi_step_loss`.
    """
    learner = LEARNERS[config.learner]
    if config.multi_step_loss and not learner.has_step_losses:
        raise ConfigError(
            f"meta.multi_step_loss: got true with meta.learner: {config.learner}, which has no query loss at adapted "
            "weights; leave it out"
        )
    return learner(config, decoder)


__all__ = ["LEARNERS", "EpisodeBatch", "Learner", "PassCounts", "TaskOutcome", "make_learner"]
