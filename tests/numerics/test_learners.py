"""Learners and heads agree with a reference that autograd differentiates as one graph, and with closed forms."""

import itertools

import pytest
import torch

from pico_ds.config import ConfigError, MetaConfig, parse_config
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.heads import HEADS, keyed_dropout
from pico_ds.meta.inner_loop import InnerSgd, run_inner_steps
from pico_ds.meta.inner_optimizer import Conditioner
from pico_ds.meta.learners import LEARNERS, EpisodeBatch, make_learner
from pico_ds.meta.learners.fomaml import FOMAML
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.meta_model import MetaModel
from pico_ds.tasks.episode import Episode
from tests.fomaml_reference import SHAPE, add_task_gradient, random_episode, relative_error
from tests.learner_reference import reference_gradient

N_WAY = 3
GRADIENT_BASED = ["fomaml", "anil", "boil", "meta_sgd"]
#: settings of each learner in these tests
HEADS_OF = {
    **{learner: list(HEADS) for learner in [*GRADIENT_BASED, "reptile"]},
    "protonet": ["prototype"],
    "masked_word": ["prototype"],
    "multitask": ["generated", "vocab"],
}
PAIRS = [(learner, head) for learner, heads in HEADS_OF.items() for head in heads]


def config(learner: str, head: str = "prototype", **changes: object) -> MetaConfig:
    values = {"inner_steps": 3, "inner_lr": 0.05, "head_inner_lr": 0.5, "vocab_head_layers": 3, "vocab_head_width": 8}
    return MetaConfig.model_validate({"learner": learner, "head": head, **values, **changes})


def make(meta: MetaConfig) -> tuple[MetaModel, FunctionalModel, dict[str, torch.Tensor]]:
    module = build_meta_model(SHAPE, meta, N_WAY, vocab_size=61, seed=0)
    with torch.no_grad():
        for weight in module.decoder.parameters():
            if weight.ndim > 1:
                weight *= 5
        if hasattr(module, "learner"):
            # different rates
            module.learner.log_rates += 0.3 * torch.randn(
                len(module.learner.log_rates), generator=torch.Generator().manual_seed(0)
            )
    network = FunctionalModel(
        build_model_skeleton(SHAPE, meta, N_WAY, vocab_size=61), torch.float32, meta.feature_squared_norm
    )
    return module, network, {name: weight.detach() for name, weight in module.named_parameters()}


def gradient_of(
    network: FunctionalModel, theta: dict[str, torch.Tensor], episode: Episode, meta: MetaConfig, **rest: object
) -> dict[str, torch.Tensor]:
    total = GradientSum(theta)
    learner = make_learner(meta, network.skeleton.decoder)
    learner.add_gradient(EpisodeBatch(network, theta, episode, "fim", **rest), total, scale=1.0)
    return total.result()


def error_of(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest relative error of any tensor, so that a small one is not lost beside the others.

    Some gradients are zero but for rounding, as that of a bias that all classes share.
    """
    assert got.keys() == wanted.keys()
    least = 1e-3 * max(float(weight.norm()) for weight in wanted.values())
    return max(float((got[name] - part).norm() / part.norm().clamp(min=least)) for name, part in wanted.items())


@pytest.mark.parametrize(("learner", "head"), PAIRS)
def test_learner_gradient_equals_the_reference(learner: str, head: str) -> None:
    meta = config(learner, head)
    module, network, theta = make(meta)
    for seed in (0, 1):
        got = gradient_of(network, theta, random_episode(seed), meta)
        assert error_of(got, reference_gradient(module, random_episode(seed), meta)) < 2e-4


@pytest.mark.parametrize("learner", [*GRADIENT_BASED, "reptile"])
@pytest.mark.parametrize("settings", [{"inner_momentum": 0.9}, {"inner_max_grad_norm": 0.02}])
def test_inner_optimizers_equal_the_reference(learner: str, settings: dict[str, float]) -> None:
    meta = config(learner, **settings)
    module, network, theta = make(meta)
    got = gradient_of(network, theta, random_episode(2), meta)
    assert error_of(got, reference_gradient(module, random_episode(2), meta)) < 2e-4
    plain = config(learner)
    assert relative_error(got, gradient_of(network, theta, random_episode(2), plain)) > 1e-3, (
        "the setting must have an effect"
    )


@pytest.mark.parametrize("by_task", [True, False])
def test_inner_momentum_and_clipping_equal_torch(by_task: bool) -> None:
    """The oracle is torch.optim.SGD after clip_grad_norm_, for one task and for a batch of two."""
    weights = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    target, rate = torch.arange(5.0), 0.1
    start = weights.clone() if by_task else weights[0].clone()
    leaves, _, _ = run_inner_steps(
        lambda now, _: 0.5 * (now["w"] - target).pow(2).sum(),
        {"w": start.requires_grad_()},
        InnerSgd(
            {"w": rate},
            steps=4,
            n_tasks=2 if by_task else None,
            condition=Conditioner(max_norm=1.5, momentum=0.8, by_task=by_task),
        ),
    )
    for task in range(2 if by_task else 1):
        parameter = torch.nn.Parameter(weights[task].clone())
        optimizer = torch.optim.SGD([parameter], lr=rate, momentum=0.8)
        for _ in range(4):
            optimizer.zero_grad()
            (0.5 * (parameter - target).pow(2).sum()).backward()
            torch.nn.utils.clip_grad_norm_([parameter], 1.5)
            optimizer.step()
        got = leaves["w"][task] if by_task else leaves["w"]
        torch.testing.assert_close(got.detach(), parameter.detach())


@pytest.mark.parametrize("learner", GRADIENT_BASED)
@pytest.mark.parametrize("head", ["prototype", "linear"])
def test_multi_step_loss_equals_the_reference(learner: str, head: str) -> None:
    meta = config(learner, head, multi_step_loss=True, multi_step_loss_annealing_steps=10)
    module, network, theta = make(meta)
    for step, weights in [
        (0, [1 / 3, 1 / 3, 1 / 3]),
        (4, [0.2, 0.2, 0.6]),
        (10, [0.0, 0.0, 1.0]),
        (99, [0.0, 0.0, 1.0]),
    ]:
        got = gradient_of(network, theta, random_episode(3), meta, step=step)
        assert error_of(got, reference_gradient(module, random_episode(3), meta, weights)) < 2e-4


@pytest.mark.parametrize("granularity", ["tensor", "layer"])
def test_learned_rates_by_tensor_and_by_layer(granularity: str) -> None:
    meta = config("meta_sgd", learned_rates=granularity)
    module, network, theta = make(meta)
    count = {"tensor": 2 * 9 + 2 + 1, "layer": 2 + 2 + 1}[granularity]
    assert theta["learner.log_rates"].shape == (count,), "embedding, final norm, layers, head"
    got = gradient_of(network, theta, random_episode(4), meta)
    wanted = reference_gradient(module, random_episode(4), meta)
    torch.testing.assert_close(got["learner.log_rates"], wanted["learner.log_rates"], rtol=2e-4, atol=1e-7)
    assert got["learner.log_rates"].abs().min() > 0
    untouched = build_meta_model(SHAPE, meta, N_WAY, 61, seed=0).learner.log_rates.detach()
    torch.testing.assert_close(untouched[:-1].exp(), torch.full((count - 1,), meta.inner_lr))
    assert float(untouched[-1].exp()) == pytest.approx(meta.head_inner_lr)


def test_learned_rate_gradient_on_a_quadratic_equals_the_closed_form() -> None:
    """For one step on L_S = 1/2 (w-a)'A(w-a): d L_Q / d log rate = -rate (A (w0-a))' B (w1-b)."""
    generator = torch.Generator().manual_seed(0)
    a, b, w0 = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(3))
    matrix_a, matrix_b = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double()), torch.eye(4).double()
    rate = 0.05
    leaves, fast, _ = run_inner_steps(
        lambda now, _: 0.5 * (now["w"] - a) @ matrix_a @ (now["w"] - a),
        {"w": w0.clone().requires_grad_()},
        InnerSgd({"w": rate}, steps=1),
    )
    (of_query,) = torch.autograd.grad(0.5 * (leaves["w"] - b) @ matrix_b @ (leaves["w"] - b), [leaves["w"]])
    wanted = -rate * (matrix_a @ (w0 - a)) @ matrix_b @ (leaves["w"].detach() - b)
    torch.testing.assert_close(of_query @ (fast["w"] - w0), wanted)


@pytest.mark.parametrize(("learner", "head"), PAIRS)
def test_batched_tasks_equal_single_tasks(learner: str, head: str) -> None:
    meta = config(learner, head, vocab_head_dropout=0.3)
    _, network, theta = make(meta)
    episodes = [random_episode(i) for i in range(3)]
    together = GradientSum(theta)
    _, logits = add_task_gradient(network, theta, Episode.stack(episodes), "fim", meta, together, scale=1.0)
    alone = GradientSum(theta)
    for i, episode in enumerate(episodes):
        _, its_logits = add_task_gradient(network, theta, episode, "fim", meta, alone, scale=1.0)
        torch.testing.assert_close(logits[i], its_logits, rtol=1e-3, atol=1e-4)
    assert error_of(together.result(), alone.result()) < 5e-4


@pytest.mark.parametrize(("learner", "head"), PAIRS)
def test_metrics_do_not_change_gradients(learner: str, head: str) -> None:
    meta = config(learner, head)
    _, network, theta = make(meta)
    measured, plain = (
        gradient_of(network, theta, random_episode(0), meta, measure=measure) for measure in (True, False)
    )
    for name, gradient in measured.items():
        torch.testing.assert_close(plain[name], gradient, rtol=0, atol=0)


def test_protonet_equals_a_plain_loop() -> None:
    """The oracle is Snell et al. 2017: softmax over negative squared distances to class means."""
    meta = config("protonet")
    module, network, theta = make(meta)
    episodes = [random_episode(i) for i in range(4)]
    total = GradientSum(theta)
    add_task_gradient(network, theta, Episode.stack(episodes), "fim", meta, total, scale=1 / 4)
    loss = torch.zeros(())
    for episode in episodes:
        read = {}
        for part in ("support", "query"):
            contexts = getattr(episode, part)
            hidden = module(contexts.input_ids)[torch.arange(len(contexts.labels)), contexts.readout_index]
            read[part] = 2 * torch.nn.functional.normalize(hidden, dim=-1)
        means = torch.stack([read["support"][episode.support.labels == label].mean(0) for label in range(N_WAY)])
        distances = torch.stack([((row - means) ** 2).sum(-1) for row in read["query"]])
        loss = loss + torch.nn.functional.cross_entropy(-distances, episode.query.labels) / 4
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    wanted = {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(theta.items(), found, strict=True)
    }
    assert error_of(total.result(), wanted) < 1e-4


def test_dropout_is_keyed_by_task_and_pass_and_keeps_the_mean() -> None:
    values = torch.ones(400, 50)
    drop = keyed_dropout(0.25, (7,), call=0, has_tasks=False)
    dropped = drop(0, values)
    assert set(dropped.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(dropped, keyed_dropout(0.25, (7,), call=0, has_tasks=False)(0, values))
    others = [
        keyed_dropout(0.25, (7,), call=1, has_tasks=False)(0, values),
        keyed_dropout(0.25, (8,), call=0, has_tasks=False)(0, values),
        drop(1, values),
    ]
    for a, b in itertools.combinations([dropped, *others], 2):
        assert 0.3 < float((a != b).float().mean()) < 0.45, "two independent masks differ with probability 2 p (1 - p)"
    assert keyed_dropout(0.0, (7,), 0, False) is None
    both = keyed_dropout(0.25, (7, 8), call=0, has_tasks=True)(0, torch.ones(2, 400, 50))
    assert torch.equal(both[0], dropped)
    assert torch.equal(both[1], others[1])


def test_no_dropout_in_evaluation() -> None:
    meta = config("anil", "vocab", vocab_head_dropout=0.5)
    _, network, theta = make(meta)
    without = meta.model_copy(update={"vocab_head_dropout": 0.0})
    heads = []
    for settings in (meta, without):
        learner = make_learner(settings, network.skeleton.decoder)
        heads.append(learner.adapt(EpisodeBatch(network, theta, random_episode(0), "fim"), steps=3).head)
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    trained = [gradient_of(network, theta, random_episode(0), settings) for settings in (meta, without)]
    assert relative_error(*trained) > 0.1


def test_vocab_head_scores_a_one_token_word_by_its_row() -> None:
    """The oracle is pico-maml's head: an MLP to the whole vocabulary, restricted to the words of the task."""
    meta = config("anil", "vocab", inner_steps=0)
    module, network, theta = make(meta)
    episode = random_episode(0)
    single = torch.full((N_WAY, 3), -1)
    single[:, 0] = torch.tensor([11, 5, 40])
    episode = Episode(episode.support, episode.query, episode.words, single, episode.keys)
    _, logits = add_task_gradient(network, theta, episode, "fim", meta, GradientSum(theta), 1.0)
    z = network.features(theta, episode.query, "fim")
    layers = [module.head.layer_0, torch.nn.ReLU(), module.head.layer_1, torch.nn.ReLU(), module.head.output]
    whole = torch.nn.Sequential(*layers)(z)
    torch.testing.assert_close(logits, whole[:, [11, 5, 40]].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner: anil, adapt: last_1_blocks", "meta.adapt: got 'last_1_blocks' with meta.learner: anil"),
        ("learner: boil, adapt: head", "meta.adapt: got 'head' with meta.learner: boil"),
        ("learner: reptile", "meta.inner_steps: got 1 with meta.learner: reptile.*at least 2"),
        ("learner: meta_sgd, inner_lr: 0.0", "meta.inner_lr: got 0"),
        ("learner: protonet, head: linear", "meta.head: got 'linear' with meta.learner: protonet"),
        ("learner: multitask", "meta.head: got 'prototype'.*that combination is meta.learner: protonet"),
        ("learner: mamll", "meta.learner: got 'mamll'.*'fomaml'"),
    ],
)
def test_conflicting_settings_are_rejected(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"meta: {{{text}}}")


@pytest.mark.parametrize("learner", [name for name, found in LEARNERS.items() if not issubclass(found, FOMAML)])
def test_multi_step_loss_is_rejected_without_an_inner_loop(learner: str) -> None:
    with pytest.raises(ConfigError, match=f"meta.multi_step_loss: got true with meta.learner: {learner}, which has no"):
        make(MetaConfig.model_validate({"learner": learner, "multi_step_loss": True}))


def test_every_learner_and_head_has_a_reference() -> None:
    assert set(HEADS_OF) | {"ar"} == set(LEARNERS)
    assert {head for heads in HEADS_OF.values() for head in heads} == set(HEADS)
