"""The inner loop: adapt a copy of the weights to one task. Pure, rank-local, no collective."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pico_ds.config import MetaConfig, Readout
from pico_ds.meta.adaptation import adapted_names
from pico_ds.meta.network import Network, Parameters
from pico_ds.meta.sgd import SGD, Update
from pico_ds.model.meta_model import HEAD_BIAS, HEAD_WEIGHT, is_of_the_body
from pico_ds.tasks.episode import Contexts


class Head(NamedTuple):
    """A linear classifier of features: logits = z weight^T + bias; one, or one for each task."""

    weight: Float[Tensor, "*tasks n_way width"]
    bias: Float[Tensor, "*tasks n_way"]

    def logits(self, features: Float[Tensor, "*tasks contexts width"]) -> Float[Tensor, "*tasks contexts n_way"]:
        """Class scores of each context."""
        if self.weight.ndim == 2:
            return F.linear(features, self.weight, self.bias)
        return torch.baddbmm(self.bias[:, None], features, self.weight.mT)


@dataclass(frozen=True)
class Adapted:
    """The outcome of the inner loop.

    Attributes:
        leaves: the decoder's adapted weights as the network computes with them, leaves that require gradients.
        fast: the same in fp32 from the first step on; None where they were not asked for.
        head: the adapted head, leaves that require gradients.
        initial_head: the head at the start; for prototypes still attached to the graph of the leaves it came from.
        first_logits: support logits before the first step.
        first_gradient_norm: norm of the first inner gradient (decoder and head), 0 without a step or where it was not
            asked for.
    """

    leaves: dict[str, Tensor]
    fast: dict[str, Tensor] | None
    head: Head
    initial_head: Head
    first_logits: Float[Tensor, "*tasks contexts n_way"]
    first_gradient_norm: Float[Tensor, "*tasks"]


def prototype_head(
    features: Float[Tensor, "*tasks contexts width"], labels: Int[Tensor, "*tasks contexts"], n_way: int
) -> Head:
    """The linear form of nearest-prototype classification: weight = 2 c, bias = -|c|^2 for class means c.

    Source: Triantafillou et al. 2020 (Proto-MAML), arXiv 1903.03096, section 3.
    """
    # not F.one_hot, which looks at the labels on the host
    members = (labels[..., None] == torch.arange(n_way, device=labels.device)).to(features.dtype)
    prototypes = (members.mT @ features) / members.sum(-2)[..., None]
    return Head(weight=2 * prototypes, bias=-prototypes.pow(2).sum(-1))


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


def descend(
    loss: Callable[[Parameters, int], Tensor],
    start: Parameters,
    rates: Mapping[str, float],
    steps: int,
    keep_first_graph: bool = False,
    n_tasks: int | None = None,
    update: Update = SGD,
    measure: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, Float[Tensor, "*tasks"]]:
    """Plain SGD: fast_{t+1} = fast_t - rate * grad loss(fast_t, t); the weights given are never written to.

    The weights are kept in fp32, so that small steps are not lost; the loss sees them in the type of `start`, cast once
    a step, and its gradients come in that type.

    Args:
        loss: of the weights and the step.
        start: leaves that require gradients; used as they are in step 0, without a copy.
        rates: learning rate by name.
        keep_first_graph: step 0 keeps the graph of its loss, which the caller needs again.
        n_tasks: of the first axis of all weights; None where there is no such axis.
        update: SGD, possibly compiled.
        measure: give the fp32 weights and the norm as well.

    Returns:
        the weights after the last step in the type of `start`, leaves that require gradients; the same in fp32; and the
        norm of the first gradient.
    """
    names = list(start)
    negative_rates = [-rates[name] for name in names]
    narrow = any(weight.dtype.itemsize < torch.float32.itemsize for weight in start.values())
    fast, leaves = [weight.detach() for weight in start.values()], list(start.values())
    first_norm = torch.zeros(() if n_tasks is None else (n_tasks,), device=fast[0].device)
    for step in range(steps):
        # no weight is of two tasks: the gradient of the sum holds that of each
        inner_loss = loss(dict(zip(names, leaves, strict=True)), step).sum()
        gradients = torch.autograd.grad(inner_loss, leaves, retain_graph=keep_first_graph and step == 0)
        del inner_loss, leaves
        with torch.no_grad():
            if step == 0 and measure:
                first_norm = total_norm(gradients, by_task=n_tasks is not None)
            if step == steps - 1 and narrow and not measure:
                leaves = update.last(fast, list(gradients), negative_rates)
            elif step == 0:
                fast, leaves = update.first(fast, list(gradients), negative_rates)
            else:
                leaves = update.next(fast, list(gradients), negative_rates)
        del gradients
        leaves = [weight.detach().requires_grad_() for weight in leaves]
    found = dict(zip(names, fast, strict=True)) if measure else None
    return dict(zip(names, leaves, strict=True)), found, first_norm


def total_norm(tensors: Iterable[Tensor], by_task: bool = False) -> Float[Tensor, "*tasks"]:
    """The norm of all tensors together, fp32 at least, whatever their type; or of each task's, along the first axis."""
    found = list(tensors)
    dtype = torch.promote_types(found[0].dtype, torch.float32)
    if by_task:
        return torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=dtype) for part in found]).norm(
            dim=0
        )
    return torch.stack(torch._foreach_norm(found, 2, dtype=dtype)).norm()


def adapt(
    network: Network,
    theta: Parameters,
    leaves: Parameters,
    support: Contexts,
    n_way: int,
    readout: Readout,
    config: MetaConfig,
    steps: int,
    keep_graph: bool = False,
    measure: bool = True,
) -> Adapted:
    """`steps` of SGD on the support loss, starting at `theta`.

    The prototypes are a start: constant for the inner gradient (as in Proto-MAML).

    Args:
        leaves: `task_leaves(theta, n_tasks)`, passed in so that the caller can differentiate with respect to them.
        keep_graph: keep the graph from `leaves` to `initial_head`, for the outer gradient through the prototypes.
        measure: give what only metrics need as well, the fp32 weights and the norm of the first gradient.
    """
    n_tasks = len(support.labels) if support.labels.ndim > 1 else None
    chosen = adapted_names(config.adapt, tuple(leaves), network.n_layers)
    frozen = {name: weight.detach() for name, weight in leaves.items() if name not in chosen}
    first_features = network.features(leaves if keep_graph else {**leaves, **frozen}, support, readout)
    if config.head == "prototype":
        initial_head = prototype_head(first_features, support.labels, n_way)
    else:
        initial_head = Head(theta[HEAD_WEIGHT].float(), theta[HEAD_BIAS].float())
        if n_tasks is not None:
            initial_head = Head(*(part.expand(n_tasks, *part.shape) for part in initial_head))
    start_head = Head(*(weight.detach().requires_grad_() for weight in initial_head))
    first_logits = start_head.logits(first_features)

    def support_loss(fast: Parameters, step: int) -> Tensor:
        if step == 0:
            return task_loss(first_logits, support.labels)
        body, head = _split(fast)
        # where the head alone is adapted, the features of the first step are those of all
        features = network.features({**frozen, **body}, support, readout) if body else first_features.detach()
        return task_loss(head.logits(features), support.labels)

    rates = dict.fromkeys(chosen, config.inner_lr) | dict.fromkeys((HEAD_WEIGHT, HEAD_BIAS), config.head_inner_lr)
    start = {
        **{name: leaves[name] for name in leaves if name in chosen},
        HEAD_WEIGHT: start_head.weight,
        HEAD_BIAS: start_head.bias,
    }
    adapted, fast, first_gradient_norm = descend(
        support_loss, start, rates, steps, keep_graph, n_tasks, network.update, measure
    )
    body, head = _split(adapted)
    # what is not adapted stays as it was, in the order of the leaves
    return Adapted(
        {name: body.get(name, leaves[name]) for name in leaves},
        None if fast is None else {name: fast.get(name, leaves[name]) for name in leaves},
        head,
        initial_head,
        first_logits.detach(),
        first_gradient_norm,
    )


def _split(fast: Parameters) -> tuple[dict[str, Tensor], Head]:
    body = dict(fast)
    return body, Head(body.pop(HEAD_WEIGHT), body.pop(HEAD_BIAS))
