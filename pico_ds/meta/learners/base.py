"""What every learner is: a rule that makes an outer gradient of a task, and a way to adapt to one."""

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
    """A task, or several alike, and where the outer loop stands.

    Attributes:
        theta: all meta-parameters, whole.
        step: outer steps since the warm-up.
        measure: what only metrics need is asked for as well (`AdaptedWeights.fast` and `first_gradient_norm`).
    """

    network: FunctionalModel
    theta: Parameters
    episode: Episode
    readout: Readout
    step: int = 0
    measure: bool = True

    def model(self, head: Head, shared: bool = False) -> EpisodeModel:
        """To train on; `shared` where several tasks are computed with the same weights."""
        return EpisodeModel.at(self.theta, self.network, head, self.episode, self.readout, training=True, shared=shared)


@dataclass(frozen=True)
class TaskOutcome:
    """What came of a task beside its gradient.

    Attributes:
        adapted: the weights that the query set was judged at.
        query_logits: at them, detached.
    """

    adapted: AdaptedWeights
    query_logits: Float[Tensor, "*tasks contexts n_way"]


@dataclass(frozen=True)
class PassCounts:
    """What the outer gradient of a task costs, in forward passes over its contexts; a backward pass counts as two."""

    support: int
    query: int


class Learner(ABC):
    """A way to learn from tasks; stateless, as all it learns is in the parameters.

    A subclass says how an outer gradient is made. Everything else has a default: the inner loop adapts `meta.adapt` and
    the head by SGD, at `meta.inner_lr` and `meta.head_inner_lr`.
    """

    #: whether tasks that are computed together have the same weights
    shares_weights = False
    #: whether there is a query loss after every inner step, for `meta.multi_step_loss`
    has_step_losses = False
    #: whether the inner loop changes the head
    adapts_head = True

    def __init__(self, config: MetaConfig, decoder: PicoDecoder) -> None:
        """
        Raises:
            ConfigError: a `meta.adapt` that finds no weight of the decoder.
        """
        self.config = config
        self.head = make_head(config)
        names = tuple(DECODER + name for name, _ in decoder.named_parameters())
        #: weights of the decoder that the inner loop changes, in the order of the decoder
        found = adapted_names(self.adapts, names, len(decoder.layers))
        self.adapted = tuple(name for name in names if name in found)

    @property
    def adapts(self) -> str:
        """What the inner loop changes of the decoder, in the words of `meta.adapt`."""
        return self.config.adapt

    @property
    def inner_steps(self) -> int:
        """Steps of the inner loop in training."""
        return self.config.inner_steps

    def module(self) -> nn.Module | None:
        """Meta-parameters of the learner's own, if any; they are `learner.*` of a MetaModel."""
        return None

    def initialize(self, module: nn.Module) -> None:
        """Give every parameter of `module` its first value."""
        raise AssertionError("a learner without parameters")

    def rates(self, theta: Parameters) -> Mapping[str, float | Tensor]:
        """Learning rate of every weight of the decoder that is adapted, and of `head`."""
        return {**dict.fromkeys(self.adapted, self.config.inner_lr), "head": self.config.head_inner_lr}

    def inner_loop(self, theta: Parameters) -> InnerLoopSpec:
        """The inner loop at the meta-parameters `theta`."""
        return InnerLoopSpec(
            self.rates(theta),
            self.inner_steps,
            self.adapts_head,
            self.config.inner_momentum,
            self.config.inner_max_grad_norm,
        )

    def adapt(
        self,
        network: FunctionalModel,
        theta: Parameters,
        episode: Episode,
        readout: Readout,
        steps: int,
        after_step: AfterAdaptation | None = None,
        measure: bool = False,
    ) -> AdaptedWeights:
        """Adapt to a task for evaluation: nothing is dropped, and the query set is not looked at.

        Args:
            measure: give the fp32 weights as well.
        """
        model = EpisodeModel.at(theta, network, self.head, episode, readout, training=False)
        spec = replace(self.inner_loop(theta), steps=steps, measure=measure)
        return adapt(model, spec, after_step)

    @abstractmethod
    def add_gradient(self, batch: EpisodeBatch, total: GradientSum, scale: float) -> TaskOutcome:
        """Add `scale` times the outer gradient of a task, or the sum over several alike, to `total`.

        The meta-parameters are not written to.
        """

    @abstractmethod
    def pass_counts(self, step: int) -> PassCounts:
        """What `add_gradient` costs; recomputation and updates do not count, as is usual."""


class WithoutInnerLoop(Learner):
    """A learner whose gradient is taken at the meta-parameters, which tasks that are computed together share."""

    shares_weights = True

    @property
    def inner_steps(self) -> int:
        """None."""
        return 0

    def outcome(
        self, model: EpisodeModel, head: HeadWeights, support_logits: Tensor, query_logits: Tensor, measure: bool
    ) -> TaskOutcome:
        """That of a task to which nothing was adapted."""
        norm = torch.zeros_like(model.episode.support.labels[..., 0], dtype=torch.float32)
        fast = dict(model.leaves) if measure else None
        adapted = AdaptedWeights(model.leaves, fast, head, head, support_logits.detach(), norm)
        return TaskOutcome(adapted, query_logits.detach())


def over_tasks(gradients: Iterable[Tensor], n_tasks: int | None) -> list[Tensor]:
    """The sum over the first axis, where that is one of tasks."""
    return [gradient if n_tasks is None else gradient.sum(0, dtype=torch.float32) for gradient in gradients]
