"""Reference for the outer gradient of every learner, as one graph that autograd differentiates.

Adapted weights are theta minus the inner learning rate times constant gradients. One backward pass of the query loss
then gives the first-order gradients of the decoder, the head and the learned rates. This module uses no code of
`pico_ds.meta`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from pico_ds.config import MetaConfig
from pico_ds.model.meta_model import MetaModel
from pico_ds.tasks.episode import Contexts, Episode

Weights = dict[str, Tensor]


def features(module: MetaModel, weights: Weights, contexts: Contexts, squared_norm: float) -> Tensor:
    hidden = functional_call(module, weights, (contexts.input_ids,), strict=False)
    readout = hidden[torch.arange(len(hidden)), contexts.readout_index]
    return squared_norm**0.5 * readout / readout.norm(dim=-1, keepdim=True)


def class_means(values: Tensor, labels: Tensor, n_way: int) -> Tensor:
    return torch.stack([values[labels == label].mean(0) for label in range(n_way)])


def initial_head(meta: MetaConfig, theta: Weights, z: Tensor, episode: Episode) -> Weights:
    labels, n_way = episode.support.labels, episode.n_way
    if meta.head == "prototype":
        means = class_means(z, labels, n_way)
        return {"weight": 2 * means, "bias": -(means**2).sum(-1)}
    if meta.head == "linear":
        return {"weight": theta["head.weight"] + 0, "bias": theta["head.bias"] + 0}
    if meta.head == "generated":
        hidden = torch.tanh(z @ theta["head.hidden.weight"].T + theta["head.hidden.bias"])
        generated = class_means(hidden @ theta["head.output.weight"].T, labels, n_way)
        return {"weight": generated[:, :-1], "bias": generated[:, -1]}
    assert meta.head == "vocab", f"add the initial weights of meta.head: {meta.head} to initial_head"
    words = [[token for token in tokens if token >= 0] for tokens in episode.word_tokens.tolist()]
    rows = {
        name: torch.stack([theta[f"head.output.{name}"][tokens].mean(0) for tokens in words])
        for name in ("weight", "bias")
    }
    layers = {name.removeprefix("head."): weight + 0 for name, weight in theta.items() if "head.layer_" in name}
    return {**rows, **layers}


def scores(meta: MetaConfig, head: Weights, z: Tensor) -> Tensor:
    if meta.head == "vocab":
        for layer in range(meta.vocab_head_layers - 1):
            z = torch.relu(z @ head[f"layer_{layer}.weight"].T + head[f"layer_{layer}.bias"])
    return z @ head["weight"].T + head["bias"]


def rate_of(meta: MetaConfig, theta: Weights, name: str, adapted: list[str]) -> float | Tensor:
    if meta.learner != "meta_sgd":
        return meta.inner_lr if name in adapted else meta.head_inner_lr
    learned = theta["learner.log_rates"].exp()
    if name not in adapted:
        return learned[-1]
    groups = [".".join(other.split(".")[1:3]) if ".layers." in other else other for other in adapted]
    if meta.learned_rates == "tensor":
        groups = adapted
    order = list(dict.fromkeys(groups))
    return learned[order.index(groups[adapted.index(name)])]


def masked_word_loss(module: MetaModel, theta: Weights, episode: Episode) -> Tensor:
    """Mean cross-entropy over the vocabulary at the readout positions of support and query."""
    losses = []
    for contexts in (episode.support, episode.query):
        logits = functional_call(module, theta, (contexts.input_ids,)) @ theta["decoder.de_embedding_proj.weight"].T
        for row, index, label in zip(logits, contexts.readout_index, contexts.labels, strict=True):
            losses.append(F.cross_entropy(row[index], episode.word_tokens[label, 0]))
    return torch.stack(losses).mean()


def reference_gradient(
    module: MetaModel, episode: Episode, meta: MetaConfig, query_weights: list[float] | None = None
) -> Weights:
    """The outer gradient of one task by parameter name.

    Args:
        query_weights: weights of the query losses after 1, 2, ... inner steps. By default only the last loss counts.
    """
    theta = {name: weight.detach().clone().requires_grad_() for name, weight in module.named_parameters()}
    support, query, s = episode.support, episode.query, meta.feature_squared_norm
    head = initial_head(meta, theta, features(module, theta, support, s), episode)
    initial, body, velocity = dict(head), dict(theta), {}
    decoder = [
        name for name, _ in module.named_parameters() if name.startswith("decoder.") and "de_embedding" not in name
    ]
    adapted = [] if meta.learner == "anil" else decoder
    steps = 0 if meta.learner in ("protonet", "multitask", "masked_word") else meta.inner_steps
    weights = query_weights or [0.0] * (steps - 1) + [1.0]
    sums: Weights = {}
    loss = torch.zeros(())

    def query_loss() -> Tensor:
        return F.cross_entropy(scores(meta, head, features(module, body, query, s)), query.labels)

    for step in range(steps):
        batch = query if meta.learner == "reptile" and step % 2 else support
        detached = {name: body[name].detach().requires_grad_() for name in adapted}
        detached_head = {name: weight.detach().requires_grad_() for name, weight in head.items()}
        frozen = {name: weight.detach() for name, weight in theta.items()}
        logits = scores(meta, detached_head, features(module, {**frozen, **detached}, batch, s))
        updated = {**detached, **({} if meta.learner == "boil" else detached_head)}
        inner_loss = F.cross_entropy(logits, batch.labels)
        gradients = dict(zip(updated, torch.autograd.grad(inner_loss, list(updated.values())), strict=True))
        if meta.inner_max_grad_norm:
            norm = sum(float(gradient.pow(2).sum()) for gradient in gradients.values()) ** 0.5
            factor = min(1.0, meta.inner_max_grad_norm / norm)
            gradients = {name: factor * gradient for name, gradient in gradients.items()}
        for name, gradient in gradients.items():
            velocity[name] = meta.inner_momentum * velocity.get(name, 0) + gradient
            sums[name] = sums.get(name, 0) + velocity[name]
            part = body if name in detached else head
            part[name] = part[name] - rate_of(meta, theta, name, adapted) * velocity[name]
        loss = loss + weights[step] * query_loss()
    if steps == 0:
        loss = query_loss()
    if meta.learner == "masked_word":
        loss = masked_word_loss(module, theta, episode)
    if meta.learner == "reptile":
        # the gradient of this loss is the sum of the inner gradients; the head's part goes through its initial weights
        loss = sum((sums[name] * initial[name]).sum() for name in initial)
        loss = loss + sum((sums[name] * theta[name]).sum() for name in adapted)
    outer_gradients = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(theta.items(), outer_gradients, strict=True)
    }
