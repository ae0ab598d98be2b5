"""The loss and the accuracy of one task, or of a batch of tasks of one shape, as functions of the weights."""

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
from pico_ds.model.meta_model import HEAD, is_body_parameter
from pico_ds.tasks.episode import Contexts, Episode


@dataclass(frozen=True)
class EpisodeModel:
    """A model together with the task that it solves.

    Attributes:
        leaves: the decoder's weights that a task loss depends on. They require gradients and share storage with the
            meta-parameters. If each task has separate weights, their first axis is the tasks.
        own: the head's meta-parameters, also leaves, which all tasks share.
        dropout: dropout rate of the head; 0 in evaluation.
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
        """Return the model at the meta-parameters `theta`.

        Args:
            training: apply the head's dropout.
            shared: all tasks of a batch use the same weights.
        """
        leaves = task_leaves(theta, None if shared else episode.n_tasks)
        own = {name: weight.detach().requires_grad_() for name, weight in own_parameters(theta, HEAD).items()}
        dropout = head.config.vocab_head_dropout if training else 0.0
        return EpisodeModel(network, head, episode, readout, leaves, own, dropout)

    def features(self, body: Parameters, contexts: Contexts) -> Float[Tensor, "*tasks contexts width"]:
        """Return the features of contexts, computed with the decoder weights `body`."""
        return self.network.features(body, contexts, self.readout)

    def scores(self, head: HeadWeights, features: Tensor, call: int) -> Float[Tensor, "*tasks contexts n_way"]:
        """Return the class scores of features. The dropout masks depend on `call`."""
        has_tasks = self.episode.n_tasks is not None
        return self.head.logits(head, features, keyed_dropout(self.dropout, self.episode.keys, call, has_tasks))

    def logits(
        self, body: Parameters, head: HeadWeights, contexts: Contexts, call: int = 0
    ) -> Float[Tensor, "*tasks contexts n_way"]:
        """Return the class scores of contexts, computed with the decoder weights `body` and the head `head`."""
        return self.scores(head, self.features(body, contexts), call)


def task_leaves(theta: Parameters, n_tasks: int | None = None) -> dict[str, Tensor]:
    """Return the decoder's parameters that a task loss depends on, as leaves that share storage with `theta`.

    Args:
        n_tasks: add a first axis of this size, with separate leaves for each task.
    """
    leaves = {name: weight.detach() for name, weight in theta.items() if is_body_parameter(name)}
    if n_tasks is not None:
        leaves = {name: weight.expand(n_tasks, *weight.shape) for name, weight in leaves.items()}
    return {name: weight.requires_grad_() for name, weight in leaves.items()}


def task_loss(
    logits: Float[Tensor, "*tasks contexts n_way"], labels: Int[Tensor, "*tasks contexts"]
) -> Float[Tensor, "*tasks"]:
    """Return the mean cross-entropy over the contexts of each task."""
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return losses.unflatten(0, labels.shape).mean(-1)


def accuracy(logits: Float[Tensor, "*tasks contexts n_way"], contexts: Contexts) -> Float[Tensor, "*tasks"]:
    """Return the fraction of the contexts whose largest logit is that of the label."""
    return (logits.argmax(-1) == contexts.labels).float().mean(-1)


@torch.no_grad()
def displacement(theta: Parameters, fast: Mapping[str, Tensor]) -> Float[Tensor, "*tasks"]:
    """Return ||fast - theta|| / ||theta|| over the given weights, for each task."""
    start = [theta[name] for name in fast]
    moved = [weight - before for weight, before in zip(fast.values(), start, strict=True)]
    return total_norm(moved, by_task=moved[0].ndim > start[0].ndim) / total_norm(start)
