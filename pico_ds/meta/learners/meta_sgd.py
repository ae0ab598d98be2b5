"""Meta-SGD: learned inner learning rates."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pico_ds.config import MetaConfig
from pico_ds.meta.functional_model import Parameters
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.inner_loop import AdaptedWeights
from pico_ds.meta.learners.fomaml import FOMAML
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.meta_model import LEARNER

_LAYER = re.compile(r"layers\.\d+")
_LOG_RATES = "log_rates"
_HEAD = "head"


class MetaSGD(FOMAML):
    """FOMAML with an inner learning rate for every tensor (`meta.learned_rates: tensor`) or layer, and for the head.

    The parameters are logarithms of the rates, so that rates stay positive and an outer step multiplies them by a
    factor. As in FOMAML, the inner gradients are treated as constants. The adapted weights are then phi = theta - a s
    for a rate a and the sum s of the inner gradients, and the gradient of the rate is exact without storing s:

        d L_query / d log a = <d L_query / d phi, -a s> = <d L_query / d phi, phi - theta>

    Source: Li et al. 2017 (Meta-SGD), arXiv 1707.09835; by layer: Bansal et al. 2020, arXiv 2009.08445, section 4.
    """

    needs_fast = True

    def __init__(self, config: MetaConfig, decoder: PicoDecoder) -> None:
        super().__init__(config, decoder)
        #: name of the rate of each adapted weight
        self.group_of = {name: self._group(name) for name in self.adapted}
        #: names of the rates in order; the head's rate is the last
        self.groups = [*dict.fromkeys(self.group_of.values()), _HEAD]

    def _group(self, name: str) -> str:
        found = _LAYER.search(name) if self.config.learned_rates == "layer" else None
        return found.group() if found else name

    def module(self) -> nn.Module:
        return nn.ParameterDict({_LOG_RATES: nn.Parameter(torch.empty(len(self.groups)))})

    def initialize(self, module: nn.Module) -> None:
        parameter = module.get_parameter(_LOG_RATES)
        parameter.fill_(math.log(self.config.inner_lr))
        parameter[-1] = math.log(self.config.head_inner_lr)

    def rates(self, theta: Parameters) -> Mapping[str, Tensor]:
        learned = dict(zip(self.groups, theta[LEARNER + _LOG_RATES].float().exp().unbind(), strict=True))
        return {**{name: learned[group] for name, group in self.group_of.items()}, "head": learned[_HEAD]}

    @torch.no_grad()
    def add_own_gradient(
        self,
        theta: Parameters,
        adapted: AdaptedWeights,
        body: Mapping[str, Tensor],
        head: Mapping[str, Tensor],
        total: GradientSum,
    ) -> None:
        assert adapted.fast is not None
        found = {group: torch.zeros((), device=theta[LEARNER + _LOG_RATES].device) for group in self.groups}
        for name, group in self.group_of.items():
            found[group] += _inner_product(body[name], adapted.fast[name] - theta[name])
        for name, gradient in head.items():
            found[_HEAD] += _inner_product(gradient, adapted.head[name] - adapted.initial_head[name])
        total.add([LEARNER + _LOG_RATES], [torch.stack([found[group] for group in self.groups])])


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() * b).sum()
