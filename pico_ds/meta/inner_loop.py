"""The inner loop: adapt a copy of the weights to one task. Pure, rank-local, no collective."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pico_ds.config import MetaConfig, Readout
from pico_ds.meta.network import Network, Parameters
from pico_ds.model.meta_model import DECODER, HEAD_BIAS, HEAD_WEIGHT, OUTPUT_PROJECTION
from pico_ds.tasks.episode import Contexts


class Head(NamedTuple):
    """A linear classifier of features: logits = z weight^T + bias."""

    weight: Float[Tensor, "n_way width"]
    bias: Float[Tensor, " n_way"]

    def logits(self, features: Float[Tensor, "contexts width"]) -> Float[Tensor, "contexts n_way"]:
        """Class scores of each context."""
        return F.linear(features, self.weight, self.bias)

    def detached(self) -> "Head":
        """The same values as leaves of a new graph."""
        return Head(self.weight.detach().requires_grad_(), self.bias.detach().requires_grad_())


@dataclass(frozen=True)
class Adapted:
    """The outcome of the inner loop.

    Attributes:
        fast: the decoder's adapted weights, leaves that require gradients.
        head: the adapted head, leaves that require gradients.
        initial_head: the head at the start, attached to the graph of `theta` where `keep_graph` asked for it.
        first_logits: support logits before the first step.
        first_gradient_norm: norm of the first inner gradient (decoder and head), 0 without a step.
    """

    fast: Mapping[str, Tensor]
    head: Head
    initial_head: Head
    first_logits: Float[Tensor, "contexts n_way"]
    first_gradient_norm: Float[Tensor, ""]


def prototype_head(
    features: Float[Tensor, "contexts width"], labels: Int[Tensor, " contexts"], n_way: int
) -> Head:
    """The linear form of nearest-prototype classification: weight = 2 c, bias = -|c|^2 for class means c.

    Source: Triantafillou et al. 2020 (Proto-MAML), arXiv 1903.03096, section 3.
    """
    members = F.one_hot(labels, n_way).to(features.dtype)
    prototypes = (members.T @ features) / members.sum(0)[:, None]
    return Head(weight=2 * prototypes, bias=-prototypes.pow(2).sum(-1))


def task_leaves(theta: Parameters) -> dict[str, Tensor]:
    """The parameters that a task loss depends on through the decoder, as leaves that share storage with `theta`."""
    return {
        name: weight.detach().requires_grad_()
        for name, weight in theta.items()
        if name.startswith(DECODER) and name != OUTPUT_PROJECTION
    }


def adapt(
    network: Network,
    theta: Parameters,
    leaves: Mapping[str, Tensor],
    support: Contexts,
    n_way: int,
    readout: Readout,
    config: MetaConfig,
    steps: int,
    keep_graph: bool = False,
) -> Adapted:
    """`steps` of SGD on the support loss, starting at `theta`.

    Args:
        leaves: `task_leaves(theta)`, passed in so that the caller can differentiate with respect to them.
        keep_graph: keep the graph from `leaves` to `initial_head`, for the outer gradient through the prototypes.

    Equation, for step t: fast_{t+1} = fast_t - inner_lr grad L_support(fast_t, head_t), and the head likewise with
    head_inner_lr. The prototypes are a start, constant for the inner gradient (as in Proto-MAML).
    """
    features = network.features(leaves, support, readout)
    if config.head == "prototype":
        initial_head = prototype_head(features, support.labels, n_way)
    else:
        initial_head = Head(theta[HEAD_WEIGHT].float(), theta[HEAD_BIAS].float())
    fast, head = dict(leaves), initial_head.detached()
    first_logits = head.logits(features)
    logits, first_gradient_norm = first_logits, features.new_zeros(())
    for step in range(steps):
        if step > 0:
            logits = head.logits(network.features(fast, support, readout))
        loss = F.cross_entropy(logits, support.labels)
        gradients = torch.autograd.grad(
            loss, [*fast.values(), *head], retain_graph=keep_graph and step == 0
        )
        if step == 0:
            first_gradient_norm = torch.nn.utils.get_total_norm(gradients)
        body, (weight_gradient, bias_gradient) = gradients[:-2], gradients[-2:]
        with torch.no_grad():
            moved = torch._foreach_add(list(fast.values()), body, alpha=-config.inner_lr)
            head = Head(
                head.weight - config.head_inner_lr * weight_gradient, head.bias - config.head_inner_lr * bias_gradient
            ).detached()
        fast = {name: weight.requires_grad_() for name, weight in zip(fast, moved, strict=True)}
    return Adapted(
        fast=fast,
        head=head,
        initial_head=initial_head,
        first_logits=first_logits.detach(),
        first_gradient_norm=first_gradient_norm,
    )
