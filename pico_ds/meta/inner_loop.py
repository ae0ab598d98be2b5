"""The inner loop: adapt a copy of the weights to one task. Pure, rank-local, no collective."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pico_ds.meta.heads import HeadWeights
from pico_ds.meta.network import Parameters
from pico_ds.meta.problem import Problem, task_loss
from pico_ds.meta.sgd import SGD, Conditioner, Update, total_norm
from pico_ds.model.meta_model import HEAD

#: (steps taken, weights in fp32 where they were asked for, leaves)
AfterStep = Callable[[int, dict[str, Tensor] | None, dict[str, Tensor]], None]


@dataclass(frozen=True)
class Descent:
    """How a task is adapted to.

    Attributes:
        rates: learning rate of every weight of the decoder that is adapted, and under `head` that of the head; numbers,
            or tensors where they are learned.
        adapts_head: whether the head is adapted.
        momentum, max_grad_norm: of the inner optimizer; 0 for neither.
        alternates: every second step descends the query loss.
        keeps_sums: the sum of the gradients is asked for.
    """

    rates: Mapping[str, float | Tensor]
    adapts_head: bool = True
    momentum: float = 0.0
    max_grad_norm: float = 0.0
    alternates: bool = False
    keeps_sums: bool = False


@dataclass(frozen=True)
class Adapted:
    """The outcome of the inner loop.

    Attributes:
        leaves: the decoder's weights as the network computes with them, adapted or not; they require gradients.
        fast: the same in fp32 from the first step on; None where they were not asked for.
        head: the adapted head, leaves that require gradients.
        initial_head: the head at the start, attached to the graph of what it was made from.
        first_logits: support logits before the first step.
        first_gradient_norm: norm of the first inner gradient (decoder and head), 0 without a step or where it was not
            asked for.
        gradient_sums: of what was descended in all steps, fp32, the head's under `head.`; empty where not asked for.
    """

    leaves: dict[str, Tensor]
    fast: dict[str, Tensor] | None
    head: HeadWeights
    initial_head: HeadWeights
    first_logits: Float[Tensor, "*tasks contexts n_way"]
    first_gradient_norm: Float[Tensor, "*tasks"]
    gradient_sums: dict[str, Tensor] = field(default_factory=dict)


def descend(
    loss: Callable[[Parameters, int], Tensor],
    start: Parameters,
    rates: Mapping[str, float | Tensor],
    steps: int,
    keep_first_graph: bool = False,
    n_tasks: int | None = None,
    update: Update = SGD,
    measure: bool = True,
    condition: Conditioner | None = None,
    after_step: AfterStep | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, Float[Tensor, "*tasks"]]:
    """SGD: fast_{t+1} = fast_t - rate * grad loss(fast_t, t); the weights given are never written to.

    The weights are kept in fp32, so that small steps are not lost; the loss sees them in the type of `start`, cast once
    a step, and its gradients come in that type.

    Args:
        loss: of the weights and the step.
        start: leaves that require gradients; used as they are in step 0, without a copy.
        rates: learning rate by name; numbers, or tensors.
        keep_first_graph: step 0 keeps the graph of its loss, which the caller needs again.
        n_tasks: of the first axis of all weights; None where there is no such axis.
        update: SGD, possibly compiled.
        measure: give the fp32 weights and the norm as well.
        condition: what is done to the gradients before.
        after_step: called after every step but the last.

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
        gradients = list(torch.autograd.grad(inner_loss, leaves, retain_graph=keep_first_graph and step == 0))
        del inner_loss, leaves
        with torch.no_grad():
            if step == 0 and measure:
                first_norm = total_norm(gradients, by_task=n_tasks is not None)
            if condition is not None:
                gradients = condition(gradients)
            if step == steps - 1 and narrow and not measure:
                leaves = update.last(fast, gradients, negative_rates)
            elif step == 0:
                fast, leaves = update.first(fast, gradients, negative_rates)
            else:
                leaves = update.next(fast, gradients, negative_rates)
        del gradients
        leaves = [weight.detach().requires_grad_() for weight in leaves]
        if after_step is not None and step < steps - 1:
            named = dict(zip(names, fast, strict=True)) if measure else None
            after_step(step + 1, named, dict(zip(names, leaves, strict=True)))
    found = dict(zip(names, fast, strict=True)) if measure else None
    return dict(zip(names, leaves, strict=True)), found, first_norm


#: after so many steps, where the task then stands; `first_logits` and the norm are those of the first step
AfterAdaptation = Callable[[int, Adapted], None]


def adapt(
    problem: Problem,
    descent: Descent,
    steps: int,
    keep_graph: bool = False,
    measure: bool = True,
    after_step: AfterAdaptation | None = None,
) -> Adapted:
    """`steps` of SGD on the support loss, starting at the meta-parameters.

    Where the head starts is a constant for the inner gradient (as in Proto-MAML).

    Args:
        keep_graph: keep the graph from `problem.leaves` to `initial_head`, for the outer gradient through the start.
        measure: give what only metrics need as well, the fp32 weights and the norm of the first gradient.
        after_step: called after every step but the last.
    """
    episode, leaves = problem.episode, problem.leaves
    chosen = [name for name in leaves if name in descent.rates]
    frozen = {name: weight.detach() for name, weight in leaves.items() if name not in descent.rates}
    batches = (episode.support, episode.query) if descent.alternates else (episode.support,)
    first_features = problem.features(leaves if keep_graph else {**leaves, **frozen}, episode.support)
    initial_head = problem.head.start(problem.own, first_features, episode)
    start_head = {name: weight.detach().requires_grad_() for name, weight in initial_head.items()}
    first_logits = problem.scores(start_head, first_features, call=0)
    # where the head alone is adapted, the features of the first step are those of all
    constant = [] if chosen else [first_features.detach()]
    if not chosen and descent.alternates:
        with torch.no_grad():
            constant.append(problem.features(leaves, episode.query))

    def inner_loss(fast: Parameters, step: int) -> Tensor:
        if step == 0:
            return task_loss(first_logits, episode.support.labels)
        body, head = _split(fast, start_head)
        batch = step % len(batches)
        features = problem.features({**frozen, **body}, batches[batch]) if body else constant[batch]
        return task_loss(problem.scores(head, features, call=step), batches[batch].labels)

    def standing(fast: dict[str, Tensor] | None, adapted: dict[str, Tensor], norm: Tensor) -> Adapted:
        body, head = _split(adapted, start_head)
        return Adapted(
            # what is not adapted stays as it was, in the order of the leaves
            {name: body.get(name, leaves[name]) for name in leaves},
            None if fast is None else {name: fast.get(name, leaves[name]) for name in leaves},
            head,
            initial_head,
            first_logits.detach(),
            norm,
        )

    start = {name: leaves[name] for name in chosen}
    rates = {name: descent.rates[name] for name in chosen}
    if descent.adapts_head:
        start |= {HEAD + name: weight for name, weight in start_head.items()}
        rates |= dict.fromkeys((HEAD + name for name in start_head), descent.rates["head"])
    no_norm = torch.zeros_like(episode.support.labels[..., 0], dtype=torch.float32)
    condition = None
    if descent.momentum or descent.max_grad_norm or descent.keeps_sums:
        by_task = episode.n_tasks is not None
        condition = Conditioner(descent.max_grad_norm, descent.momentum, by_task, descent.keeps_sums)
    adapted, fast, first_gradient_norm = descend(
        inner_loss,
        start,
        rates,
        steps,
        keep_graph,
        episode.n_tasks,
        problem.network.update,
        measure,
        condition,
        None if after_step is None else lambda count, fast, now: after_step(count, standing(fast, now, no_norm)),
    )
    found = standing(fast, adapted, first_gradient_norm)
    if condition is not None and descent.keeps_sums:
        found.gradient_sums.update(zip(start, condition.sums, strict=True))
    return found


def _split(fast: Parameters, start_head: HeadWeights) -> tuple[dict[str, Tensor], HeadWeights]:
    """The decoder's weights and the head's; a head that is not adapted stands where it started."""
    body = {name: weight for name, weight in fast.items() if not name.startswith(HEAD)}
    return body, {name: fast.get(HEAD + name, weight) for name, weight in start_head.items()}
