"""The inner loop: adapt a copy of the weights to one task. Pure, rank-local, no collective."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pico_ds.meta.episode_model import EpisodeModel, task_loss
from pico_ds.meta.functional_model import Parameters
from pico_ds.meta.heads import HeadWeights
from pico_ds.meta.inner_optimizer import SGD, Conditioner, Update, total_norm
from pico_ds.model.meta_model import HEAD

#: (number of steps, fp32 weights if requested, leaves)
AfterStep = Callable[[int, dict[str, Tensor] | None, dict[str, Tensor]], None]


@dataclass(frozen=True)
class InnerLoopSpec:
    """How the inner loop adapts to a task.

    Attributes:
        rates: learning rate of every adapted decoder weight, and of the head under `head`. Numbers, or tensors if the
            rates are learned.
        steps: number of inner steps.
        adapts_head: whether the head is adapted.
        momentum: momentum of the inner optimizer; 0 for none.
        max_grad_norm: the inner gradients are clipped to this norm; 0 for no clipping.
        alternates: steps 1, 3, ... use the query set instead of the support set.
        keeps_sums: return the sum of the inner gradients.
        keeps_graph: keep the graph from the weights to `initial_head`, for the outer gradient through the head's start.
        measure: return the fp32 weights and the norm of the first gradient, which only metrics need.
    """

    rates: Mapping[str, float | Tensor]
    steps: int
    adapts_head: bool = True
    momentum: float = 0.0
    max_grad_norm: float = 0.0
    alternates: bool = False
    keeps_sums: bool = False
    keeps_graph: bool = False
    measure: bool = True


@dataclass(frozen=True)
class AdaptedWeights:
    """The outcome of the inner loop.

    Attributes:
        leaves: all decoder weights, adapted or not, in the type that the network computes in. They require gradients.
        fast: the adapted decoder weights in fp32; None if not requested.
        head: the adapted head; its tensors are leaves that require gradients.
        initial_head: the head before the first step, with the autograd graph that computed it.
        first_logits: support logits before the first step.
        first_gradient_norm: norm of the first inner gradient (decoder and head); 0 without steps or if not requested.
        gradient_sums: sums of the processed gradients over all steps, fp32, with the head's under `head.`; empty if not
            requested.
    """

    leaves: dict[str, Tensor]
    fast: dict[str, Tensor] | None
    head: HeadWeights
    initial_head: HeadWeights
    first_logits: Float[Tensor, "*tasks contexts n_way"]
    first_gradient_norm: Float[Tensor, "*tasks"]
    gradient_sums: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class InnerSgd:
    """SGD of the inner loop.

    Attributes:
        rates: learning rate by name; numbers, or tensors.
        keeps_first_graph: step 0 keeps the graph of its loss, which the caller needs again.
        n_tasks: size of the first axis of all weights; None if they have no axis of tasks.
        measure: return the fp32 weights and the norm as well.
        update: SGD, possibly compiled.
        condition: applied to the gradients before the update.
    """

    rates: Mapping[str, float | Tensor]
    steps: int
    keeps_first_graph: bool = False
    n_tasks: int | None = None
    measure: bool = True
    update: Update = SGD
    condition: Conditioner | None = None


def run_inner_steps(
    loss: Callable[[Parameters, int], Tensor], start: Parameters, sgd: InnerSgd, after_step: AfterStep | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, Float[Tensor, "*tasks"]]:
    """SGD: fast_{t+1} = fast_t - rate * grad loss(fast_t, t). Does not change `start`.

    The weights are kept in fp32, so that small updates are not lost to rounding. Once per step they are cast to the
    type of `start`, in which the loss and its gradients are computed.

    Args:
        loss: a function of the weights and the step number.
        start: leaves that require gradients. Step 0 uses them without a copy.
        after_step: called after every step except the last.

    Returns:
        the weights after the last step, as leaves in the type of `start`; the weights in fp32, or None; and the norm of
        the first gradient.
    """
    names = list(start)
    negative_rates = [-sgd.rates[name] for name in names]
    is_half_precision = any(weight.dtype.itemsize < torch.float32.itemsize for weight in start.values())
    fast, leaves = [weight.detach() for weight in start.values()], list(start.values())
    first_norm = torch.zeros(() if sgd.n_tasks is None else (sgd.n_tasks,), device=fast[0].device)
    for step in range(sgd.steps):
        # tasks share no weights, so the gradient of the sum contains the gradient of each task
        inner_loss = loss(dict(zip(names, leaves, strict=True)), step).sum()
        gradients = list(torch.autograd.grad(inner_loss, leaves, retain_graph=sgd.keeps_first_graph and step == 0))
        del inner_loss, leaves
        with torch.no_grad():
            if step == 0 and sgd.measure:
                first_norm = total_norm(gradients, by_task=sgd.n_tasks is not None)
            if sgd.condition is not None:
                gradients = sgd.condition(gradients)
            if step == sgd.steps - 1 and is_half_precision and not sgd.measure:
                leaves = sgd.update.last(fast, gradients, negative_rates)
            elif step == 0:
                fast, leaves = sgd.update.first(fast, gradients, negative_rates)
            else:
                leaves = sgd.update.next(fast, gradients, negative_rates)
        del gradients
        leaves = [weight.detach().requires_grad_() for weight in leaves]
        if after_step is not None and step < sgd.steps - 1:
            named = dict(zip(names, fast, strict=True)) if sgd.measure else None
            after_step(step + 1, named, dict(zip(names, leaves, strict=True)))
    fast_weights = dict(zip(names, fast, strict=True)) if sgd.measure else None
    return dict(zip(names, leaves, strict=True)), fast_weights, first_norm


#: (number of steps, weights after these steps)
AfterAdaptation = Callable[[int, AdaptedWeights], None]


def adapt(model: EpisodeModel, spec: InnerLoopSpec, after_step: AfterAdaptation | None = None) -> AdaptedWeights:
    """Adapt to a task by `spec.steps` steps of SGD on the support loss, starting at the meta-parameters.

    The inner gradient treats the head's initial weights as constants, as in Proto-MAML (Triantafillou et al. 2020,
    arXiv 1903.03096).

    Args:
        after_step: called after every step except the last.
    """
    episode, leaves = model.episode, model.leaves
    adapted_names = [name for name in leaves if name in spec.rates]
    frozen = {name: weight.detach() for name, weight in leaves.items() if name not in spec.rates}
    batches = (episode.support, episode.query) if spec.alternates else (episode.support,)
    first_features = model.features(leaves if spec.keeps_graph else {**leaves, **frozen}, episode.support)
    initial_head = model.head.start(model.own, first_features, episode)
    start_head = {name: weight.detach().requires_grad_() for name, weight in initial_head.items()}
    first_logits = model.scores(start_head, first_features, call=0)
    # if only the head is adapted, the features are the same in every step
    constant = [] if adapted_names else [first_features.detach()]
    if not adapted_names and spec.alternates:
        with torch.no_grad():
            constant.append(model.features(leaves, episode.query))

    def inner_loss(fast: Parameters, step: int) -> Tensor:
        if step == 0:
            return task_loss(first_logits, episode.support.labels)
        body, head = _split(fast, start_head)
        batch = step % len(batches)
        features = model.features({**frozen, **body}, batches[batch]) if body else constant[batch]
        return task_loss(model.scores(head, features, call=step), batches[batch].labels)

    def adapted_at(fast: dict[str, Tensor] | None, adapted: dict[str, Tensor], norm: Tensor) -> AdaptedWeights:
        body, head = _split(adapted, start_head)
        return AdaptedWeights(
            # weights that are not adapted keep their values; the order is that of the leaves
            {name: body.get(name, leaves[name]) for name in leaves},
            None if fast is None else {name: fast.get(name, leaves[name]) for name in leaves},
            head,
            initial_head,
            first_logits.detach(),
            norm,
        )

    start = {name: leaves[name] for name in adapted_names}
    rates = {name: spec.rates[name] for name in adapted_names}
    if spec.adapts_head:
        start |= {HEAD + name: weight for name, weight in start_head.items()}
        rates |= dict.fromkeys((HEAD + name for name in start_head), spec.rates["head"])
    no_norm = torch.zeros_like(episode.support.labels[..., 0], dtype=torch.float32)
    condition = None
    if spec.momentum or spec.max_grad_norm or spec.keeps_sums:
        by_task = episode.n_tasks is not None
        condition = Conditioner(spec.max_grad_norm, spec.momentum, by_task, spec.keeps_sums)
    sgd = InnerSgd(rates, spec.steps, spec.keeps_graph, episode.n_tasks, spec.measure, model.network.update, condition)
    on_step = None if after_step is None else lambda count, fast, now: after_step(count, adapted_at(fast, now, no_norm))
    adapted, fast, first_gradient_norm = run_inner_steps(inner_loss, start, sgd, on_step)
    result = adapted_at(fast, adapted, first_gradient_norm)
    if condition is not None and spec.keeps_sums:
        result.gradient_sums.update(zip(start, condition.sums, strict=True))
    return result


def _split(fast: Parameters, start_head: HeadWeights) -> tuple[dict[str, Tensor], HeadWeights]:
    """Return the weights of the decoder and of the head. A head that is not adapted keeps its initial weights."""
    body = {name: weight for name, weight in fast.items() if not name.startswith(HEAD)}
    return body, {name: fast.get(HEAD + name, weight) for name, weight in start_head.items()}
