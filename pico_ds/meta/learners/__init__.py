"""Learners, by the value of `meta.learner`."""

from pico_ds.config import MetaConfig
from pico_ds.meta.learners.anil import ANIL
from pico_ds.meta.learners.ar import Autoregressive
from pico_ds.meta.learners.base import Given, Learner, TaskOutcome, Work
from pico_ds.meta.learners.boil import BOIL
from pico_ds.meta.learners.fomaml import FOMAML
from pico_ds.meta.learners.masked_word import MaskedWord
from pico_ds.meta.learners.meta_sgd import MetaSGD
from pico_ds.meta.learners.multitask import Multitask
from pico_ds.meta.learners.protonet import ProtoNet
from pico_ds.meta.learners.reptile import Reptile
from pico_ds.model.decoder import PicoDecoder

LEARNERS: dict[str, type[Learner]] = {
    "fomaml": FOMAML,
    "anil": ANIL,
    "boil": BOIL,
    "reptile": Reptile,
    "meta_sgd": MetaSGD,
    "protonet": ProtoNet,
    "multitask": Multitask,
    "masked_word": MaskedWord,
    "ar": Autoregressive,
}


def make_learner(config: MetaConfig, decoder: PicoDecoder) -> Learner:
    """The learner that the configuration asks for; the decoder gives names alone.

    Raises:
        ConfigError: a `meta.adapt` that finds no weight of the decoder.
    """
    return LEARNERS[config.learner](config, decoder)


__all__ = ["LEARNERS", "Given", "Learner", "TaskOutcome", "Work", "make_learner"]
