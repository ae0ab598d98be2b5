"""The inner loop and the outer gradient agree with closed forms and an independent reference."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from pico_ds.config import ConfigError, MetaConfig
from pico_ds.meta.adapted_parameters import adapted_names
from pico_ds.meta.episode_model import accuracy
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.heads import PrototypeHead
from pico_ds.meta.inner_loop import InnerSgd, run_inner_steps
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.meta_model import MetaModel
from pico_ds.tasks.episode import Episode
from tests.fomaml_reference import (
    SHAPE,
    adapt_to,
    add_task_gradient,
    features,
    language_model_gradients,
    random_episode,
    relative_error,
    task_gradients,
)

N_WAY = 3


def make(meta: MetaConfig, seed: int = 0) -> tuple[MetaModel, FunctionalModel]:
    module = build_meta_model(SHAPE, meta, N_WAY, vocab_size=61, seed=seed)
    # larger weights than after initialization, so that adaptation changes the features
    with torch.no_grad():
        for weight in module.decoder.parameters():
            if weight.ndim > 1:
                weight *= 5
    network = FunctionalModel(
        build_model_skeleton(SHAPE, meta, N_WAY, vocab_size=61), torch.float32, meta.feature_squared_norm
    )
    return module, network


def test_fomaml_on_a_quadratic_equals_the_closed_form() -> None:
    """For L_S = 1/2 (w-a)'A(w-a) and L_Q = 1/2 (w-b)'B(w-b): outer = B (a + (I - lr A)^k (w0 - a) - b)."""
    generator = torch.Generator().manual_seed(0)
    root_a, root_b, a, b, w0 = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(4, 4), (4, 4), (4,), (4,), (4,)]
    )
    matrix_a, matrix_b = root_a @ root_a.T, root_b @ root_b.T
    lr, steps = 0.01, 7

    def support_loss(weights: dict, step: int) -> torch.Tensor:
        return 0.5 * (weights["w"] - a) @ matrix_a @ (weights["w"] - a)

    leaves, fast, first_norm = run_inner_steps(
        support_loss, {"w": w0.clone().requires_grad_()}, InnerSgd({"w": lr}, steps)
    )
    query_loss = 0.5 * (leaves["w"] - b) @ matrix_b @ (leaves["w"] - b)
    (outer,) = torch.autograd.grad(query_loss, [leaves["w"]])

    adapted = a + torch.linalg.matrix_power(torch.eye(4) - lr * matrix_a, steps) @ (w0 - a)
    torch.testing.assert_close(fast["w"].detach(), adapted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outer, matrix_b @ (adapted - b), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first_norm, (matrix_a @ (w0 - a)).norm(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", ["prototype", "linear"])
@pytest.mark.parametrize("inner_steps", [0, 1, 3])
def test_outer_gradient_equals_the_reference(head: str, inner_steps: int) -> None:
    meta = MetaConfig(head=head, inner_steps=inner_steps, inner_lr=0.05, head_inner_lr=0.5)
    module, network = make(meta)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    got = GradientSum(theta)
    for i in range(3):
        add_task_gradient(network, theta, random_episode(i), "fim", meta, got, scale=1 / 3)
    each = [task_gradients(module, random_episode(i), meta) for i in range(3)]
    wanted = {name: sum(gradient[name] for gradient in each) / 3 for name in each[0]}
    assert relative_error(got.result(), wanted) < 1e-5


def test_zero_inner_steps_equal_a_prototypical_network() -> None:
    meta = MetaConfig(inner_steps=0)
    module, network = make(meta)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    episode = random_episode(7)
    got = GradientSum(theta)
    add_task_gradient(network, theta, episode, "fim", meta, got, scale=1.0)

    support, query = (features(module, part, meta.feature_squared_norm) for part in (episode.support, episode.query))
    means = torch.stack([support[episode.support.labels == label].mean(0) for label in range(N_WAY)])
    loss = F.cross_entropy(-torch.cdist(query, means).pow(2), episode.query.labels)
    exact = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    wanted = {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(module.named_parameters(), exact, strict=True)
    }
    assert relative_error(got.result(), wanted) < 1e-5


def test_language_model_gradient_equals_the_reference_for_any_micro_batch() -> None:
    module, network = make(MetaConfig())
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    rows = torch.randint(0, SHAPE.vocab_size, (5, 9), generator=torch.Generator().manual_seed(0))
    wanted = language_model_gradients(module, rows)
    for micro_batch_size in (1, 2, 5):
        got = GradientSum(theta)
        loss_sum = add_language_model_gradient(network, theta, rows, got, 1 / rows[:, 1:].numel(), micro_batch_size)
        assert relative_error(got.result(), wanted) < 1e-6
        logits = module.decoder(rows[:, :-1]).flatten(0, 1)
        torch.testing.assert_close(loss_sum, F.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum").detach())


def test_inner_loop_does_not_change_theta() -> None:
    meta = MetaConfig(inner_steps=3, inner_lr=0.5)
    module, network = make(meta)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    before = copy.deepcopy(theta)
    adapted = adapt_to(network, theta, random_episode(0), meta, steps=3)
    assert any(not torch.equal(adapted.fast[name], before[name]) for name in adapted.fast)
    assert all(torch.equal(theta[name], before[name]) for name in before)
    assert all(weight.grad is None for weight in module.parameters())


def test_fast_weights_stay_fp32_if_the_network_computes_in_bf16() -> None:
    meta = MetaConfig(inner_steps=5, inner_lr=2e-4)
    module, _ = make(meta)
    network = FunctionalModel(
        build_model_skeleton(SHAPE, meta, N_WAY, vocab_size=61), torch.bfloat16, meta.feature_squared_norm
    )
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    adapted = adapt_to(network, theta, random_episode(0), meta, steps=5)
    name = "decoder.layers.0.attention.o_proj.weight"
    assert adapted.fast[name].dtype == torch.float32
    moved = (adapted.fast[name] != theta[name]).float().mean()
    rounded_away = (adapted.fast[name].bfloat16() == theta[name].bfloat16()).float().mean()
    assert moved > 0.9
    assert rounded_away > 0.5


def test_prototype_logits_are_negative_squared_distances_up_to_a_constant() -> None:
    episode = random_episode(0)
    labels = episode.support.labels
    z = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0))
    head = PrototypeHead(MetaConfig())
    logits = head.logits(head.start({}, z, episode), z)
    means = torch.stack([z[labels == label].mean(0) for label in range(3)])
    distances = -torch.cdist(z, means).pow(2)
    torch.testing.assert_close(logits.softmax(-1), distances.softmax(-1))


def test_adaptation_lowers_the_support_loss() -> None:
    meta = MetaConfig(inner_lr=0.05)
    module, network = make(meta)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    episode = random_episode(3)
    support = episode.support
    adapted = adapt_to(network, theta, episode, meta, steps=10)
    after = PrototypeHead(meta).logits(adapted.head, network.features(adapted.fast, support, "fim"))
    assert F.cross_entropy(after, support.labels) < F.cross_entropy(adapted.first_logits, support.labels)
    assert accuracy(after, support) >= accuracy(adapted.first_logits, support)


def test_mean_readout_averages_real_positions_only() -> None:
    module, network = make(MetaConfig())
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    contexts = random_episode(0).support
    got = network.features(theta, contexts, "mean")
    hidden = module(contexts.input_ids).detach()
    wanted = torch.stack([hidden[i, :length].mean(0) for i, length in enumerate(contexts.lengths.tolist())])
    torch.testing.assert_close(got, 2 * wanted / wanted.norm(dim=-1, keepdim=True))


def test_gradient_sum_keeps_one_gradient_and_adds_more_in_fp32() -> None:
    theta = {name: torch.zeros(2, dtype=torch.bfloat16) for name in ("none", "one", "many")}
    total = GradientSum(theta)
    alone = torch.tensor([3.0, 4.0], dtype=torch.bfloat16)
    total.add(["one"], [alone])
    # 256 + 1 is 256 in bf16, so only an fp32 sum gives 384
    for part in [256.0, *128 * [1.0]]:
        total.add(["many"], [torch.full((2,), part, dtype=torch.bfloat16)])
    result = total.result()
    assert list(result) == list(theta)
    assert result["one"] is alone
    assert torch.equal(result["none"], torch.zeros(2, dtype=torch.bfloat16))
    assert torch.equal(result["many"], torch.full((2,), 384.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("adapt", ["all", "head", "last_1_blocks"])
def test_metrics_do_not_change_gradients(dtype: torch.dtype, inner_steps: int, adapt: str) -> None:
    meta = MetaConfig(inner_steps=inner_steps, inner_lr=0.05, adapt=adapt)
    module, _ = make(meta)
    network = FunctionalModel(build_model_skeleton(SHAPE, meta, N_WAY, vocab_size=61), dtype, meta.feature_squared_norm)
    theta = {name: weight.detach().to(dtype) for name, weight in module.named_parameters()}
    results = []
    for measure in (True, False):
        total = GradientSum(theta)
        adapted, _ = add_task_gradient(network, theta, random_episode(0), "fim", meta, total, 1.0, measure)
        assert (adapted.fast is not None) is measure
        results.append(total.result())
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=0, atol=0)


@pytest.mark.parametrize("head", ["prototype", "linear"])
@pytest.mark.parametrize("inner_steps", [0, 1, 3])
def test_bf16_leaves_give_the_gradient_of_fp32_weights(head: str, inner_steps: int) -> None:
    """The gradient is bit-identical to that of fp32 leaves which are cast inside the graph."""
    meta = MetaConfig(head=head, inner_steps=inner_steps, inner_lr=0.05, head_inner_lr=0.5)
    module, _ = make(meta)
    network = FunctionalModel(
        build_model_skeleton(SHAPE, meta, N_WAY, vocab_size=61), torch.bfloat16, meta.feature_squared_norm
    )
    theta = {name: weight.detach().bfloat16() for name, weight in module.named_parameters()}
    copies = {name: weight.float() for name, weight in theta.items()}
    got, wanted = GradientSum(theta), GradientSum(copies)
    for weights, total in ((theta, got), (copies, wanted)):
        add_task_gradient(network, weights, random_episode(0), "fim", meta, total, scale=1.0)
        rows = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1))
        add_language_model_gradient(network, weights, rows, total, scale=0.1, micro_batch_size=2)
    in_fp32 = wanted.result()
    # add at least two gradients, so that their sum is fp32
    assert all(torch.equal(found, in_fp32[name].bfloat16()) for name, found in got.result().items())


@pytest.mark.parametrize("head", ["prototype", "linear"])
@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize(
    ("adapt", "adapts"),
    [
        ("all", lambda _: True),
        ("head", lambda _: False),
        ("last_1_blocks", lambda name: name.startswith(("layers.1.", "output_norm"))),
        (r"attention\.[qv]_proj", lambda name: "q_proj" in name or "v_proj" in name),
    ],
)
def test_outer_gradient_covers_all_weights_for_any_adapted_subset(
    head: str, inner_steps: int, adapt: str, adapts: Callable[[str], bool]
) -> None:
    meta = MetaConfig(head=head, inner_steps=inner_steps, inner_lr=0.05, head_inner_lr=0.5, adapt=adapt)
    module, network = make(meta)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    got = GradientSum(theta)
    adapted, _ = add_task_gradient(network, theta, random_episode(1), "fim", meta, got, scale=1.0)
    assert relative_error(got.result(), task_gradients(module, random_episode(1), meta, adapts)) < 1e-5
    moved = {name for name in adapted.fast if not torch.equal(adapted.fast[name], theta[name])}
    assert moved == {name for name in adapted.fast if adapts(name.removeprefix("decoder."))}


def test_adapting_only_the_head_computes_features_once(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = MetaConfig(inner_steps=10, adapt="head")
    module, network = make(meta)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    calls: list[int] = []
    hidden = network.hidden
    monkeypatch.setattr(network, "hidden", lambda *rest: calls.append(1) or hidden(*rest))
    add_task_gradient(network, theta, random_episode(0), "fim", meta, GradientSum(theta), scale=1.0)
    assert len(calls) == 2, "one call for support and one for query"


def test_invalid_meta_adapt_is_rejected() -> None:
    names = tuple(name for name, _ in build_model_skeleton(SHAPE, MetaConfig(), N_WAY, 61).named_parameters())
    for wrong, message in [
        ("last_3_blocks", r"meta\.adapt: got last_3_blocks, but the model has 2 blocks; use 1 to 2"),
        (
            "bodyy",
            r"meta\.adapt: 'bodyy' matches no parameter such as 'layers\.0\..*use all, head, last_<k>_blocks",
        ),
        ("(", r"meta\.adapt: '\(' is not a valid regular expression"),
    ]:
        with pytest.raises(ConfigError, match=message):
            adapted_names(wrong, names, SHAPE.n_layers)


@pytest.mark.parametrize("head", ["prototype", "linear"])
@pytest.mark.parametrize(("adapt", "inner_steps"), [("all", 0), ("all", 3), ("head", 3), ("last_1_blocks", 2)])
@pytest.mark.parametrize("readout", ["fim", "mean"])
def test_batched_tasks_equal_single_tasks(head: str, adapt: str, inner_steps: int, readout: str) -> None:
    meta = MetaConfig(head=head, inner_steps=inner_steps, inner_lr=0.05, head_inner_lr=0.5, adapt=adapt)
    module, network = make(meta)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    got, wanted = GradientSum(theta), GradientSum(theta)
    episodes = [random_episode(i) for i in range(4)]
    together = Episode.stack(episodes)
    assert (together.n_tasks, together.n_way) == (4, N_WAY)
    adapted, logits = add_task_gradient(network, theta, together, readout, meta, got, scale=0.25)
    for i, episode in enumerate(episodes):
        alone, its_logits = add_task_gradient(network, theta, episode, readout, meta, wanted, scale=0.25)
        torch.testing.assert_close(logits[i], its_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(adapted.first_gradient_norm[i], alone.first_gradient_norm, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(accuracy(logits, together.query)[i], accuracy(its_logits, episode.query))
        for name in alone.fast:
            torch.testing.assert_close(adapted.fast[name][i], alone.fast[name], rtol=1e-4, atol=1e-6)
    assert relative_error(got.result(), wanted.result()) < 1e-5
