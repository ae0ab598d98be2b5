"""Activation checkpointing changes memory but no result."""

from collections.abc import Iterator

import jaxtyping
import pytest
import torch

from pico_ds.config import MetaConfig
from pico_ds.meta.functional_model import CompileMode, FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.recompute import Recompute
from pico_ds.tasks.episode import Episode
from tests.fomaml_reference import SHAPE, add_task_gradient, random_episode, relative_error

META = MetaConfig(inner_steps=2, inner_lr=0.05, head_inner_lr=0.5)
N_WAY = 3


@pytest.fixture(autouse=True)
def _without_shape_checks() -> Iterator[None]:
    torch._dynamo.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def gradient_of(recompute: Recompute, compile_mode: CompileMode = "none", tasks_together: bool = False) -> dict:
    """The gradient of two tasks, whose support graph is differentiated twice, and of rows."""
    module = build_meta_model(SHAPE, META, N_WAY, vocab_size=61, seed=0)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    skeleton = build_model_skeleton(SHAPE, META, N_WAY, vocab_size=61, recompute=recompute)
    network = FunctionalModel(skeleton, torch.float32, META.feature_squared_norm, compile_mode, "aot_eager")
    episodes = [random_episode(i) for i in range(2)]
    total = GradientSum(theta)
    for episode in [Episode.stack(episodes)] if tasks_together else episodes:
        add_task_gradient(network, theta, episode, "fim", META, total, scale=0.5)
    rows = torch.randint(0, 61, (4, 9), generator=torch.Generator().manual_seed(0))
    add_language_model_gradient(network, theta, rows, total, scale=0.1, micro_batch_size=2)
    return total.result()


@pytest.mark.parametrize("recompute", ["block", "selective"])
def test_recomputation_keeps_gradients_bit_identical(recompute: Recompute) -> None:
    wanted = gradient_of("none")
    for name, gradient in gradient_of(recompute).items():
        assert torch.equal(gradient, wanted[name]), name


@pytest.mark.parametrize(
    ("recompute", "mode", "tasks_together"),
    [
        ("block", "block", False),
        ("selective", "model", True),
        pytest.param("selective", "block", False, marks=pytest.mark.slow),
        pytest.param("block", "model", False, marks=pytest.mark.slow),
        pytest.param("selective", "model", False, marks=pytest.mark.slow),
        pytest.param("block", "model", True, marks=pytest.mark.slow),
    ],
)
def test_recomputation_keeps_compiled_gradients(recompute: Recompute, mode: CompileMode, tasks_together: bool) -> None:
    assert relative_error(gradient_of(recompute, mode, tasks_together), gradient_of("none")) < 1e-6
