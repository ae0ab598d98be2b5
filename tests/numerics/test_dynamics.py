"""Snapshots agree with plain PyTorch: a module, manual hooks, and `.backward()`."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pico_ds.config import ConfigError, MetaConfig
from pico_ds.dynamics.activations import observe
from pico_ds.dynamics.adaptation_measures import AdaptationProbe
from pico_ds.dynamics.recorded_layers import recorded_layers
from pico_ds.engine.distributed import Process
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.learners import make_learner
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.meta_model import MetaModel
from pico_ds.tasks.episode import Episode
from tests.fomaml_reference import SHAPE, random_episode, relative_error

SUFFIXES = ["attention.v_proj", "attention.o_proj", "swiglu.w_2", "swiglu_norm", "embedding_proj"]
SINGLE_RANK = Process(0, 1, 0, torch.device("cpu"))


def make(meta: MetaConfig) -> tuple[MetaModel, FunctionalModel, dict[str, torch.Tensor]]:
    module = build_meta_model(SHAPE, meta, 3, vocab_size=61, seed=0)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight *= 5
    network = FunctionalModel(
        build_model_skeleton(SHAPE, meta, 3, vocab_size=61), torch.float32, meta.feature_squared_norm
    )
    return module, network, {name: weight.detach() for name, weight in module.named_parameters()}


@pytest.mark.parametrize("sequence_idx", [-1, 0, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
def test_activations_and_gradients_equal_plain_pytorch(sequence_idx: int, micro_batch_size: int) -> None:
    module, network, theta = make(MetaConfig())
    rows = torch.randint(0, 61, (5, 9), generator=torch.Generator().manual_seed(3))
    layers = recorded_layers(theta, SUFFIXES)
    before = {name: weight.clone() for name, weight in theta.items()}
    got = observe(network, theta, rows, layers, sequence_idx, micro_batch_size, SINGLE_RANK)

    outputs: dict[str, torch.Tensor] = {}
    decoder = module.decoder
    for path in layers:
        decoder.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, path=path: outputs.__setitem__(path, output.detach())
        )
    logits = decoder(rows[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    assert got.loss == pytest.approx(loss.item(), rel=1e-6)
    assert list(got.activations) == list(layers)
    for path in layers:
        outputs[path] = outputs[path][:, sequence_idx]
    assert relative_error(got.activations, outputs) < 1e-6
    assert relative_error(got.gradients, {path: decoder.get_submodule(path).weight.grad for path in layers}) < 1e-6
    # the snapshot does not change the state of training
    assert all(torch.equal(theta[name], before[name]) and theta[name].grad is None for name in theta)


def test_layers_are_selected_by_the_end_of_their_path() -> None:
    _, _, theta = make(MetaConfig())
    layers = recorded_layers(theta, ["attention.v_proj", "w_2"])
    assert list(layers) == [f"layers.{i}.{end}" for i in range(2) for end in ("attention.v_proj", "swiglu.w_2")]
    assert layers["layers.0.swiglu.w_2"] == "decoder.layers.0.swiglu.w_2.weight"
    with pytest.raises(
        ConfigError, match=r"layer_suffixes: no module ends in 'attention.v_porj'; available: attention.k_proj"
    ):
        recorded_layers(theta, ["attention.v_porj"])
    with pytest.raises(ConfigError, match="de_embedding_proj"):
        recorded_layers(theta, ["de_embedding_proj"])


class Tasks:
    """A task source with equal tasks at every step."""

    readout = "fim"

    def sample(self, step: int, index: int) -> Episode:
        return random_episode(index)


@pytest.mark.parametrize("learner", ["fomaml", "anil", "protonet"])
def test_adaptation_equals_a_plain_loop(learner: str) -> None:
    meta = MetaConfig.model_validate({"learner": learner, "inner_lr": 0.05, "head_inner_lr": 0.5})
    _, network, theta = make(meta)
    layers, steps = recorded_layers(theta, ["attention.o_proj"]), 2
    rule = make_learner(meta, network.skeleton.decoder)
    probe = AdaptationProbe(network, rule, Tasks(), 3, steps, layers, SINGLE_RANK)
    got = probe.observe(theta)

    for index in range(3):
        episode, head = random_episode(index), rule.head
        body = {name: theta[name].clone() for name in theta}
        with torch.no_grad():
            support = network.features(body, episode.support, "fim")
            weights = dict(rule.head.start({}, support, episode))
        for moment in range(steps + 1):
            leaves = {name: weight.detach().requires_grad_() for name, weight in {**body, **weights}.items()}
            inside = {name: leaves[name] for name in body}, {name: leaves[name] for name in weights}
            losses, gradients = {}, {}
            for part in ("support", "query"):
                contexts = getattr(episode, part)
                logits = head.logits(inside[1], network.features(inside[0], contexts, "fim"))
                losses[part] = F.cross_entropy(logits, contexts.labels)
                gradients[part] = dict(
                    zip(
                        leaves, torch.autograd.grad(losses[part], list(leaves.values()), allow_unused=True), strict=True
                    )
                )
                hits = (logits.argmax(-1) == contexts.labels).float().mean()
                assert float(got[f"{part}_accuracy"][index, moment]) == pytest.approx(float(hits))
                assert float(got[f"{part}_loss"][index, moment]) == pytest.approx(float(losses[part]), rel=1e-5)
            for path, name in layers.items():
                pair = [gradients[part][name].flatten() for part in ("support", "query")]
                cosine = F.cosine_similarity(*pair, dim=0)
                assert float(got[f"gradient_cosine.{path}"][index, moment]) == pytest.approx(float(cosine), abs=1e-4)
                moved = (body[name] - theta[name]).norm() / theta[name].norm()
                assert float(got[f"displacement.{path}"][index, moment]) == pytest.approx(
                    float(moved), rel=1e-4, abs=1e-8
                )
            if moment < steps:
                adapted = set(rule.adapted)
                for name in body:
                    if name in adapted and gradients["support"][name] is not None:
                        body[name] = body[name] - 0.05 * gradients["support"][name]
                weights = {name: leaves[name].detach() - 0.5 * gradients["support"][name] for name in weights}
    shape = got["activations_before.layers.0.attention.o_proj"].shape
    assert shape == got["activations_after.layers.0.attention.o_proj"].shape
    assert shape == (3, len(random_episode(0).query.labels), SHAPE.d_model)
    moved = learner != "anil"
    same = torch.equal(
        got["activations_before.layers.1.attention.o_proj"], got["activations_after.layers.1.attention.o_proj"]
    )
    assert same != moved
    assert bool(got["update_effective_rank.layers.0.attention.o_proj"].isnan().all()) != moved


class LiveGradients(TorchDispatchMode):
    """Counts live results of matrix products with the shape of a weight."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.most = shapes | {torch.Size(reversed(shape)) for shape in shapes}, 0
        self.found: list[StorageWeakRef] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default and result.shape in self.shapes:
            self.found = [storage for storage in self.found if not storage.expired()]
            self.found.append(StorageWeakRef(result.untyped_storage()))
            self.most = max(self.most, len(self.found))
        return result


def test_snapshot_holds_one_gradient_per_layer_on_the_device() -> None:
    meta = MetaConfig()
    _, network, theta = make(meta)
    layers = recorded_layers(theta, ["attention.v_proj", "attention.o_proj", "swiglu.w_2"])
    live = LiveGradients({theta[name].shape for name in layers.values()})
    beats: list[None] = []
    rows = torch.randint(0, 61, (5, 9), generator=torch.Generator().manual_seed(3))
    with live:
        observe(network, theta, rows, layers, -1, 2, SINGLE_RANK, lambda: beats.append(None))
    assert live.most == 1
    # a snapshot may take longer than training.hang_timeout_seconds
    assert len(beats) == 3
    # leave out the inner loop, whose gradients have the same shapes
    tasks, rule = Tasks(), make_learner(meta, network.skeleton.decoder)
    probe = AdaptationProbe(network, rule, tasks, 3, 0, layers, SINGLE_RANK, lambda: beats.append(None))
    with live:
        probe.observe(theta)
    assert live.most == 1
    assert len(beats) == 3 + 3
