"""Heads: classifiers of features, and their initial weights in each task.

A head starts at h_0(theta), a differentiable function of the meta-parameters and, for some kinds, of the support
features. The inner loop then updates the head; the outer gradient treats these updates as constants (first order).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pico_ds.config import MetaConfig
from pico_ds.data.keyed_random import digest64
from pico_ds.tasks.episode import Episode

#: weights of a task's classifier by name, fp32; with a first axis of tasks for a batch of tasks
HeadWeights = dict[str, Tensor]
#: dropout of a head's hidden units: (layer, values) to values; None for no dropout
Drop = Callable[[int, Tensor], Tensor] | None


class Head(ABC):
    """A kind of classifier."""

    #: whether the initial weights depend on the support features
    reads_features = False

    def __init__(self, config: MetaConfig) -> None:
        self.config = config

    def module(self, width: int, n_way: int, vocab_size: int) -> nn.Module | None:
        """Return the head's meta-parameters, if it has any. They are `head.*` in a MetaModel."""
        return None

    def initialize(self, module: nn.Module, generator: torch.Generator) -> None:
        """Initialize every parameter of `module`."""
        raise AssertionError("this head has no parameters")

    def n_way(self, own: Mapping[str, Tensor]) -> int | None:
        """Return the number of classes that every task must have; None if any number works.

        Args:
            own: the parameters of `module`.
        """
        return None

    @abstractmethod
    def start(
        self, own: Mapping[str, Tensor], features: Float[Tensor, "*tasks contexts width"], episode: Episode
    ) -> HeadWeights:
        """Return the classifier before the first inner step, differentiable.

        Args:
            own: the parameters of `module`, shared by all tasks.
            features: features of the support contexts.
        """

    def logits(
        self, weights: HeadWeights, features: Float[Tensor, "*tasks contexts width"], drop: Drop = None
    ) -> Float[Tensor, "*tasks contexts n_way"]:
        """Return the class scores of each context."""
        return affine(weights["weight"], weights["bias"], features)


class PrototypeHead(Head):
    """The linear form of nearest-prototype classification: weight = 2 c, bias = -|c|^2 for class means c.

    Source: Triantafillou et al. 2020 (Proto-MAML), arXiv 1903.03096, section 3.
    """

    reads_features = True

    def start(self, own: Mapping[str, Tensor], features: Tensor, episode: Episode) -> HeadWeights:
        prototypes = class_means(features, episode.support.labels, episode.n_way)
        return {"weight": 2 * prototypes, "bias": -prototypes.pow(2).sum(-1)}


class LinearHead(Head):
    """A meta-learned linear classifier of n_way classes. Every task starts with the same weights."""

    def module(self, width: int, n_way: int, vocab_size: int) -> nn.Module:
        return nn.Linear(width, n_way)

    def initialize(self, module: nn.Module, generator: torch.Generator) -> None:
        assert isinstance(module, nn.Linear)
        module.weight.normal_(0.0, 1 / math.sqrt(module.in_features), generator=generator)
        module.bias.zero_()

    def n_way(self, own: Mapping[str, Tensor]) -> int:
        return len(own["bias"])

    def start(self, own: Mapping[str, Tensor], features: Tensor, episode: Episode) -> HeadWeights:
        return {name: _of_each_task(part.float(), episode.n_tasks) for name, part in own.items()}


class GeneratedHead(Head):
    """A linear classifier generated from the support features: (w_n, b_n) = mean over class n of g(z).

    g is an MLP with one hidden layer of tanh units. Only the outer loop trains g.
    Source: Bansal et al. 2020 (LEOPARD), arXiv 1911.03863, equation 2.
    """

    reads_features = True

    def module(self, width: int, n_way: int, vocab_size: int) -> nn.Module:
        # no output bias, because it would add the same score to every class
        output = nn.Linear(width, width + 1, bias=False)
        return nn.ModuleDict({"hidden": nn.Linear(width, width), "output": output})

    def initialize(self, module: nn.Module, generator: torch.Generator) -> None:
        _xavier(module, generator)

    def start(self, own: Mapping[str, Tensor], features: Tensor, episode: Episode) -> HeadWeights:
        hidden = F.linear(features, own["hidden.weight"].float(), own["hidden.bias"].float()).tanh()
        written = F.linear(hidden, own["output.weight"].float())
        means = class_means(written, episode.support.labels, episode.n_way)
        return {"weight": means[..., :-1], "bias": means[..., -1]}


class VocabHead(Head):
    """pico-maml's MLP classifier over the vocabulary, restricted to the words of a task.

    The layers are linear with ReLU and dropout; the output layer has one row per token. The row of a word is the mean
    of its tokens' rows, so a word of one token has the same score as in pico-maml. The inner loop adapts the layers and
    the rows of the task's words.
    """

    def module(self, width: int, n_way: int, vocab_size: int) -> nn.Module:
        inner = self.config.vocab_head_width
        widths = [width, *[inner] * (self.config.vocab_head_layers - 1)]
        layers = {f"layer_{i}": nn.Linear(widths[i], widths[i + 1]) for i in range(len(widths) - 1)}
        return nn.ModuleDict({**layers, "output": nn.Linear(widths[-1], vocab_size)})

    def initialize(self, module: nn.Module, generator: torch.Generator) -> None:
        _xavier(module, generator)

    def start(self, own: Mapping[str, Tensor], features: Tensor, episode: Episode) -> HeadWeights:
        tokens = episode.word_tokens
        real = (tokens >= 0).float()
        found = {name: own[f"output.{name}"][tokens.clamp(min=0)].float() for name in ("weight", "bias")}
        count = real.sum(-1)
        weight = (found["weight"] * real[..., None]).sum(-2) / count[..., None]
        bias = (found["bias"] * real).sum(-1) / count
        layers = {name: part for name, part in own.items() if not name.startswith("output.")}
        return {
            "weight": weight,
            "bias": bias,
            **{name: _of_each_task(part.float(), episode.n_tasks) for name, part in layers.items()},
        }

    def logits(self, weights: HeadWeights, features: Tensor, drop: Drop = None) -> Tensor:
        hidden = features
        for layer in range(self.config.vocab_head_layers - 1):
            hidden = affine(weights[f"layer_{layer}.weight"], weights[f"layer_{layer}.bias"], hidden).relu()
            hidden = hidden if drop is None else drop(layer, hidden)
        return affine(weights["weight"], weights["bias"], hidden)


#: heads by the value of meta.head
HEADS: dict[str, type[Head]] = {
    "prototype": PrototypeHead,
    "linear": LinearHead,
    "generated": GeneratedHead,
    "vocab": VocabHead,
}


def make_head(config: MetaConfig) -> Head:
    """Return the head that `meta.head` names."""
    return HEADS[config.head](config)


def affine(
    weight: Float[Tensor, "*tasks out width"],
    bias: Float[Tensor, "*tasks out"],
    values: Float[Tensor, "*tasks contexts width"],
) -> Float[Tensor, "*tasks contexts out"]:
    """Apply a linear layer. If the weights have a first axis of tasks, each task uses its own weights."""
    if weight.ndim == 2:
        return F.linear(values, weight, bias)
    return torch.baddbmm(bias[:, None], values, weight.mT)


def class_means(
    values: Float[Tensor, "*tasks contexts width"], labels: Int[Tensor, "*tasks contexts"], n_way: int
) -> Float[Tensor, "*tasks n_way width"]:
    """Return the mean of the values of each class."""
    # not F.one_hot, because it reads the labels on the host
    members = (labels[..., None] == torch.arange(n_way, device=labels.device)).to(values.dtype)
    return (members.mT @ values) / members.sum(-2)[..., None]


def keyed_dropout(rate: float, keys: tuple[int, ...], call: int, has_tasks: bool) -> Drop:
    """Return inverted dropout. Its masks depend only on the keys of the tasks, and not on the number of ranks.

    Args:
        call: number of the pass through the head; each pass has different masks.
        has_tasks: the first axis of the values is the tasks, one for each key.
    """

    def drop(layer: int, values: Tensor) -> Tensor:
        def mask_of(key: int, like: Tensor) -> Tensor:
            generator = torch.Generator(values.device).manual_seed(digest64("dropout", key, call, layer))
            return torch.rand(like.shape, generator=generator, device=values.device) >= rate

        if has_tasks:
            mask = torch.stack([mask_of(key, values[i]) for i, key in enumerate(keys)])
        else:
            mask = mask_of(keys[0], values)
        return values * mask / (1 - rate)

    return drop if rate else None


def _of_each_task(weight: Tensor, n_tasks: int | None) -> Tensor:
    return weight if n_tasks is None else weight.expand(n_tasks, *weight.shape)


def _xavier(module: nn.Module, generator: torch.Generator) -> None:
    """Glorot and Bengio 2010: uniform weights of variance 2 / (in + out); biases are zero."""
    for weight in module.parameters():
        if weight.ndim == 2:
            nn.init.xavier_uniform_(weight, generator=generator)
        else:
            weight.zero_()


def own_parameters(parameters: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries whose name starts with `prefix`, by name without the prefix."""
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
