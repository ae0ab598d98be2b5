"""Gradients of the outer loop, rank-local: of one task, and of rows of plain language modelling."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pico_ds.config import MetaConfig, Readout
from pico_ds.meta.gradient import GradientSum
from pico_ds.meta.inner_loop import Adapted, adapt, task_leaves, task_loss
from pico_ds.meta.network import Network, Parameters
from pico_ds.model.meta_model import HEAD_BIAS, HEAD_WEIGHT
from pico_ds.tasks.episode import Contexts, Episode


def add_task_gradient(
    network: Network,
    theta: Parameters,
    episode: Episode,
    readout: Readout,
    config: MetaConfig,
    total: GradientSum,
    scale: float,
    measure: bool = True,
) -> tuple[Adapted, Float[Tensor, "*tasks contexts n_way"]]:
    """Add `scale` times the first-order outer gradient of one task, or the sum over several, to `total`.

    With phi the adapted weights and h the adapted head, FOMAML (Finn et al. 2017, arXiv 1703.03400, section 5.2) takes
    d L_query(phi, h) / d phi for the decoder. A linear head is adapted like every weight and gets d L_query / d h. A
    prototype head starts at h_0(theta), which is differentiated exactly while its inner updates count as constants:

        outer = d L_query / d phi + (d h_0 / d theta)^T d L_query / d h

    At inner_steps = 0 this is the exact gradient of a prototypical network.

    Args:
        measure: see `adapt`.

    Returns:
        the adapted weights, and the query logits at them (detached).
    """
    n_tasks = episode.n_tasks
    leaves = task_leaves(theta, n_tasks)
    prototypes = config.head == "prototype"
    adapted = adapt(
        network,
        theta,
        leaves,
        episode.support,
        episode.n_way,
        readout,
        config,
        steps=config.inner_steps,
        keep_graph=prototypes,
        measure=measure,
    )
    logits = adapted.head.logits(network.features(adapted.leaves, episode.query, readout))
    # scaled here, not after: the gradients are as many bytes as the model
    loss = scale * task_loss(logits, episode.query.labels).sum()
    *body, weight_gradient, bias_gradient = torch.autograd.grad(
        loss,
        [*adapted.leaves.values(), *adapted.head],
    )
    total.add(leaves, _over_tasks(body, n_tasks))
    del body
    if prototypes:
        through = torch.autograd.grad(
            adapted.initial_head, list(leaves.values()), grad_outputs=(weight_gradient, bias_gradient)
        )
        total.add(leaves, _over_tasks(through, n_tasks))
    else:
        of_head = _over_tasks((weight_gradient, bias_gradient), n_tasks)
        total.add((HEAD_WEIGHT, HEAD_BIAS), of_head)
    return adapted, logits.detach()


def _over_tasks(gradients: Iterable[Tensor], n_tasks: int | None) -> list[Tensor]:
    """The sum over the first axis, where that is one of tasks."""
    return [gradient if n_tasks is None else gradient.sum(0, dtype=torch.float32) for gradient in gradients]


def add_language_model_gradient(
    network: Network,
    theta: Parameters,
    rows: Int[Tensor, "rows length"],
    total: GradientSum,
    scale: float,
    micro_batch_size: int,
) -> Float[Tensor, ""]:
    """Add `scale` times the gradient of the SUM of the rows' cross-entropies to `total`; returns that sum (nats)."""
    leaves = {
        name: weight.detach().requires_grad_() for name, weight in theta.items() if name not in (HEAD_WEIGHT, HEAD_BIAS)
    }
    loss_sum = torch.zeros((), device=rows.device)
    for micro_batch in rows.split(micro_batch_size):
        loss = network.language_model_loss(leaves, micro_batch)
        total.add(leaves, torch.autograd.grad(scale * loss, list(leaves.values())))
        loss_sum += loss.detach()
    return loss_sum


def accuracy(logits: Float[Tensor, "*tasks contexts n_way"], contexts: Contexts) -> Float[Tensor, "*tasks"]:
    """Share of the contexts whose largest logit is the label's."""
    return (logits.argmax(-1) == contexts.labels).float().mean(-1)
