"""One task, or several alike, as functions of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pico_ds.config import Readout
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.heads import Head, HeadWeights, keyed_dropout, own_parameters
from pico_ds.meta.inner_optimizer import total_norm
from pico_ds.model.meta_model import HEAD, is_of_the_body
from pico_ds.tasks.episode import Contexts, Episode


@dataclass(frozen=True)
class EpisodeModel:
    """A task for a model to solve.

    Attributes:
        leaves: weights of the decoder that a task loss depends on; they require gradients and share storage with the
            meta-parameters. Where every task has weights of its own, they have a first axis of tasks.
        own: the head's meta-parameters, likewise leaves, which all tasks share.
        dropout: rate in the head, 0 where nothing is trained.
    """

    network: FunctionalModel
    head: Head
    episode: Episode
    readout: Readout
    leaves: dict[str, Tensor]
    own: dict[str, Tensor]
    dropout: float

    @staticmethod
    def at(
        theta: Parameters,
        network: FunctionalModel,
        head: Head,
        episode: Episode,
        readout: Readout,
        training: bool,
        shared: bool = False,
    ) -> "EpisodeModel":
        """The problem where the meta-parameters are `theta`.

        Args:
            training: units of the head are dropped, if it has any to drop.
            shared: several tasks are computed with the same weights.
        """
        leaves = task_leaves(theta, None if shared else episode.n_tasks)
        own = {name: weight.detach().requires_grad_() for name, weight in own_parameters(theta, HEAD).items()}
        dropout = head.config.vocab_head_dropout if training else 0.0
        return EpisodeModel(network, head, episode, readout, leaves, own, dropout)

    def features(self, body: Parameters, contexts: Contexts) -> Float[Tensor, "*tasks contexts width"]:
        """Features of contexts at weights of the decoder."""
        return self.network.features(body, contexts, self.readout)

    def scores(self, head: HeadWeights, features: Tensor, call: int) -> Float[Tensor, "*tasks contexts n_way"]:
        """Class scores of features; `call` keys what is dropped."""
        has_tasks = self.episode.n_tasks is not None
        return self.head.logits(head, features, keyed_dropout(self.dropout, self.episode.keys, call, has_tasks))

    def logits(
        self, body: Parameters, head: HeadWeights, contexts: Contexts, call: int = 0
    ) -> Float[Tensor, "*tasks contexts n_way"]:
        """Class scores of contexts at a decoder and a head."""
        return self.scores(head, self.features(body, contexts), call)


def task_leaves(theta: Parameters, n_tasks: int | None = None) -> dict[str, Tensor]:
    """The parameters that a task loss depends on through the decoder, as leaves that share storage with `theta`.

    Args:
        n_tasks: give each of so many tasks leaves of its own, along a first axis.
    """
    leaves = {name: weight.detach() for name, weight in theta.items() if is_of_the_body(name)}
    if n_tasks is not None:
        leaves = {name: weight.expand(n_tasks, *weight.shape) for name, weight in leaves.items()}
    return {name: weight.requires_grad_() for name, weight in leaves.items()}


def task_loss(
    logits: Float[Tensor, "*tasks contexts n_way"], labels: Int[Tensor, "*tasks contexts"]
) -> Float[Tensor, "*tasks"]:
    """Mean cross-entropy over the contexts of each task."""
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return losses.unflatten(0, labels.shape).mean(-1)


def accuracy(logits: Float[Tensor, "*tasks contexts n_way"], contexts: Contexts) -> Float[Tensor, "*tasks"]:
    """Share of the contexts whose largest logit is the label's."""
    return (logits.argmax(-1) == contexts.labels).float().mean(-1)


@torch.no_grad()
def displacement(theta: Parameters, fast: Mapping[str, Tensor]) -> Float[Tensor, "*tasks"]:
    """||fast - theta|| / ||theta|| over the weights given, of each task where there are several."""
    start = [theta[name] for name in fast]
    moved = [weight - before for weight, before in zip(fast.values(), start, strict=True)]
    return total_norm(moved, by_task=moved[0].ndim > start[0].ndim) / total_norm(start)
