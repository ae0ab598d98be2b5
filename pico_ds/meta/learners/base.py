"""The base class of learners, which compute the outer gradient of tasks and adapt to tasks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pico_ds.config import MetaConfig, Readout
from pico_ds.meta.adapted_parameters import adapted_names
from pico_ds.meta.episode_model import EpisodeModel
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.heads import Head, HeadWeights, make_head
from pico_ds.meta.inner_loop import AdaptedWeights, AfterAdaptation, InnerLoopSpec, adapt
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.meta_model import DECODER
from pico_ds.tasks.episode import Episode


@dataclass(frozen=True)
class EpisodeBatch:
    """One task, or a batch of tasks of one shape, with the model and the meta-parameters.

    Attributes:
        theta: all meta-parameters, complete on every rank.
        step: number of outer steps since the warm-up.
        measure: also compute what only metrics need (`AdaptedWeights.fast` and `first_gradient_norm`).
    """

    network: FunctionalModel
    theta: Parameters
    episode: Episode
    readout: Readout
    step: int = 0
    measure: bool = True

    def model(self, head: Head, shared: bool = False) -> EpisodeModel:
        """Return the model and its task for training. With `shared`, all tasks of the batch use the same weights."""
        return EpisodeModel.at(self.theta, self.network, head, self.episode, self.readout, training=True, shared=shared)


@dataclass(frozen=True)
class TaskOutcome:
    """The results of a task, in addition to its gradient.

    Attributes:
        adapted: the weights that computed the query logits.
        query_logits: class scores of the query set, detached.
    """

    adapted: AdaptedWeights
    query_logits: Float[Tensor, "*tasks contexts n_way"]


@dataclass(frozen=True)
class PassCounts:
    """Cost of the outer gradient of a task, in forward passes over its contexts. A backward pass counts as two."""

    support: int
    query: int


class Learner(ABC):
    """A meta-learning algorithm. A learner has no state, because everything that it learns is in the parameters.

    A subclass defines the outer gradient. Everything else has a default: the inner loop adapts the weights that
    `meta.adapt` selects and the head by SGD, with the rates `meta.inner_lr` and `meta.head_inner_lr`.
    """

    #: whether all tasks of a batch use the same weights
    shares_weights = False
    #: whether the learner supports `meta.multi_step_loss`, a query loss after every inner step
    has_step_losses = False
    #: whether the inner loop changes the head
    adapts_head = True

    def __init__(self, config: MetaConfig, decoder: PicoDecoder) -> None:
        """
        Raises:
            ConfigError: `meta.adapt` matches no weight of the decoder.
        """
        self.config = config
        self.head = make_head(config)
        names = tuple(DECODER + name for name, _ in decoder.named_parameters())
        #: weights of the decoder that the inner loop changes, in the order of the decoder
        found = adapted_names(self.adapts, names, len(decoder.layers))
        self.adapted = tuple(name for name in names if name in found)

    @property
    def adapts(self) -> str:
        """The decoder weights that the inner loop changes, as a value of `meta.adapt`."""
        return self.config.adapt

    @property
    def inner_steps(self) -> int:
        """Number of inner steps in training."""
        return self.config.inner_steps

    def module(self) -> nn.Module | None:
        """Return the learner's own meta-parameters, if it has any. They are `learner.*` in a MetaModel."""
        return None

    def initialize(self, module: nn.Module) -> None:
        """Initialize every parameter of `module`."""
        raise AssertionError("this learner has no parameters")

    def rates(self, theta: Parameters) -> Mapping[str, float | Tensor]:
        """Return the learning rate of every adapted decoder weight by name, and of the head as `head`."""
        return {**dict.fromkeys(self.adapted, self.config.inner_lr), "head": self.config.head_inner_lr}

    def inner_loop(self, theta: Parameters) -> InnerLoopSpec:
        """Return the inner loop at the meta-parameters `theta`."""
        return InnerLoopSpec(
            self.rates(theta),
            self.inner_steps,
            self.adapts_head,
            self.config.inner_momentum,
            self.config.inner_max_grad_norm,
        )

    def adapt(self, batch: EpisodeBatch, steps: int, after_step: AfterAdaptation | None = None) -> AdaptedWeights:
        """Adapt to a task for evaluation: without dropout, and without the query set."""
        model = EpisodeModel.at(batch.theta, batch.network, self.head, batch.episode, batch.readout, training=False)
        spec = replace(self.inner_loop(batch.theta), steps=steps, measure=batch.measure)
        return adapt(model, spec, after_step)

    @abstractmethod
    def add_gradient(self, batch: EpisodeBatch, total: GradientSum, scale: float) -> TaskOutcome:
        """Add `scale` times the outer gradient, summed over the tasks of the batch, to `total`.

        Does not change the meta-parameters.
        """

    @abstractmethod
    def pass_counts(self, step: int) -> PassCounts:
        """Return the cost of `add_gradient`, without recomputation and weight updates."""


class WithoutInnerLoop(Learner):
    """A learner that computes the gradient at the meta-parameters, which all tasks of a batch share."""

    shares_weights = True

    @property
    def inner_steps(self) -> int:
        """Always 0."""
        return 0

    def outcome(
        self, model: EpisodeModel, head: HeadWeights, support_logits: Tensor, query_logits: Tensor, measure: bool
    ) -> TaskOutcome:
        """Return the outcome of a task without adaptation."""
        norm = torch.zeros_like(model.episode.support.labels[..., 0], dtype=torch.float32)
        fast = dict(model.leaves) if measure else None
        adapted = AdaptedWeights(model.leaves, fast, head, head, support_logits.detach(), norm)
        return TaskOutcome(adapted, query_logits.detach())


def over_tasks(gradients: Iterable[Tensor], n_tasks: int | None) -> list[Tensor]:
    """Return the gradients, summed over the first axis if it is the tasks."""
    return [gradient if n_tasks is None else gradient.sum(0, dtype=torch.float32) for gradient in gradients]
