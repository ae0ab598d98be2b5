"""Reference for first-order MAML as in a textbook: deep copies, `backward`, and a loop over tasks in one process.

`task_gradients` and its helpers use no code of `pico_ds.meta`, so that tests can compare the two.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from pico_ds.config import MetaConfig, ModelConfig, Readout
from pico_ds.meta.episode_model import EpisodeModel
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.inner_loop import AdaptedWeights, adapt
from pico_ds.meta.learners import EpisodeBatch, make_learner
from pico_ds.model.meta_model import MetaModel
from pico_ds.tasks.episode import Contexts, Episode

SHAPE = ModelConfig(
    d_model=24,
    n_layers=2,
    attention_n_heads=4,
    attention_n_kv_heads=2,
    activation_hidden_dim=48,
    vocab_size=61,
    max_seq_len=32,
)


def random_contexts(rng: np.random.Generator, n_way: int, per_class: int, seq: int = 9) -> Contexts:
    """Contexts of random tokens. The first token correlates with the class."""
    labels = np.repeat(np.arange(n_way), per_class)
    ids = rng.integers(n_way, SHAPE.vocab_size, size=(len(labels), seq))
    ids[:, 0] = labels
    lengths = rng.integers(4, seq + 1, size=len(labels))
    return Contexts(*(torch.from_numpy(x.astype(np.int64)) for x in (ids, lengths, lengths - 1, labels)))


def random_episode(seed: int, n_way: int = 3, k_shot: int = 2, q_query: int = 2) -> Episode:
    """A task of random tokens. Its class words have one, two and three tokens in turn."""
    rng = np.random.default_rng(seed)
    words = tuple(f"word{i}" for i in range(n_way))
    support, query = random_contexts(rng, n_way, k_shot), random_contexts(rng, n_way, q_query)
    tokens = torch.from_numpy(rng.permutation(SHAPE.vocab_size)[: 3 * n_way].reshape(n_way, 3))
    tokens[torch.arange(3) > torch.arange(n_way)[:, None] % 3] = -1
    return Episode(support, query, words, tokens, keys=(seed,))


def add_task_gradient(
    network: FunctionalModel,
    theta: Parameters,
    episode: Episode,
    readout: Readout,
    meta: MetaConfig,
    total: GradientSum,
    scale: float,
    measure: bool = True,
) -> tuple[AdaptedWeights, torch.Tensor]:
    """Add the configured learner's gradient of a task to `total`. Returns the adapted weights and query logits."""
    learner = make_learner(meta, network.skeleton.decoder)
    outcome = learner.add_gradient(EpisodeBatch(network, theta, episode, readout, measure=measure), total, scale)
    return outcome.adapted, outcome.query_logits


def adapt_to(
    network: FunctionalModel, theta: Parameters, episode: Episode, meta: MetaConfig, steps: int, measure: bool = True
) -> AdaptedWeights:
    """Adapt with the inner loop of the configured learner."""
    learner = make_learner(meta, network.skeleton.decoder)
    model = EpisodeModel.at(theta, network, learner.head, episode, "fim", training=False)
    return adapt(model, replace(learner.inner_loop(theta), steps=steps, measure=measure))


def features(model: MetaModel, contexts: Contexts, squared_norm: float) -> torch.Tensor:
    """Features at the readout positions, scaled to the norm `sqrt(squared_norm)`."""
    hidden = model(contexts.input_ids)
    readout = torch.stack([hidden[i, index] for i, index in enumerate(contexts.readout_index.tolist())])
    return squared_norm**0.5 * readout / readout.norm(dim=-1, keepdim=True)


def class_means(z: torch.Tensor, labels: torch.Tensor, n_way: int) -> torch.Tensor:
    """Mean feature of each class."""
    return torch.stack([z[labels == label].mean(0) for label in range(n_way)])


def task_gradients(
    model: MetaModel, episode: Episode, config: MetaConfig, adapts: Callable[[str], bool] = lambda _: True
) -> dict[str, torch.Tensor]:
    """The outer gradient of one task by parameter name. Only decoder parameters with `adapts(name)` are adapted."""
    fast = copy.deepcopy(model)
    support, query, n_way, s = episode.support, episode.query, episode.n_way, config.feature_squared_norm
    if config.head == "prototype":
        means = class_means(features(model, support, s), support.labels, n_way)
        weight0, bias0 = 2 * means, -(means**2).sum(-1)
    else:
        weight0, bias0 = model.head.weight, model.head.bias
    weight = weight0.detach().clone().requires_grad_()
    bias = bias0.detach().clone().requires_grad_()
    for _ in range(config.inner_steps):
        fast.zero_grad()
        weight.grad = bias.grad = None
        F.cross_entropy(features(fast, support, s) @ weight.T + bias, support.labels).backward()
        with torch.no_grad():
            for name, parameter in fast.decoder.named_parameters():
                if parameter.grad is not None and adapts(name):
                    parameter -= config.inner_lr * parameter.grad
            weight -= config.head_inner_lr * weight.grad
            bias -= config.head_inner_lr * bias.grad
    fast.zero_grad()
    weight.grad = bias.grad = None
    F.cross_entropy(features(fast, query, s) @ weight.T + bias, query.labels).backward()
    outer = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in fast.named_parameters()}
    if config.head == "prototype":
        model.zero_grad()
        torch.autograd.backward([weight0, bias0], [weight.grad, bias.grad])
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                outer[name] = outer[name] + parameter.grad
        model.zero_grad()
    else:
        outer["head.weight"], outer["head.bias"] = weight.grad, bias.grad
    return outer


def language_model_gradients(model: MetaModel, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of the mean next-token cross-entropy by parameter name."""
    model.zero_grad()
    logits = model.decoder(rows[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }
    model.zero_grad()
    return gradients


def relative_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """|actual - expected| / |expected|, the Euclidean norm over all tensors together."""
    assert actual.keys() == expected.keys()
    difference = sum(float((actual[name] - expected[name]).double().pow(2).sum()) for name in expected)
    size = sum(float(expected[name].double().pow(2).sum()) for name in expected)
    return (difference / size) ** 0.5
