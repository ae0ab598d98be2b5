"""The compiled network agrees with the eager one. It compiles few graphs, without graph breaks."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch._dynamo.utils import counters

from pico_ds.config import MetaConfig
from pico_ds.meta.functional_model import CompileMode, FunctionalModel, Parameters
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from tests.fomaml_reference import SHAPE, add_task_gradient, random_episode, relative_error

META = MetaConfig(inner_steps=3, inner_lr=0.05, head_inner_lr=0.5)
N_WAY = 3


def network_of(mode: CompileMode, backend: str = "aot_eager", dtype: torch.dtype = torch.float32) -> FunctionalModel:
    skeleton = build_model_skeleton(SHAPE, META, N_WAY, vocab_size=61)
    return FunctionalModel(skeleton, dtype, META.feature_squared_norm, mode, backend)


@pytest.fixture
def theta() -> Parameters:
    module = build_meta_model(SHAPE, META, N_WAY, vocab_size=61, seed=0)
    return {name: weight.detach() for name, weight in module.named_parameters()}


@pytest.fixture(autouse=True)
def _from_scratch() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    # the shape checks that the tests add to every function have state, and graphs would depend on it
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def gradient_of(
    network: FunctionalModel, theta: Parameters, seed: int = 0, measure: bool = True
) -> dict[str, torch.Tensor]:
    """The gradient of a task and of rows in two micro-batches, with a forward pass without gradients in between."""
    total = GradientSum(theta)
    add_task_gradient(network, theta, random_episode(seed), "fim", META, total, 1.0, measure)
    rows = torch.randint(0, 61, (4, 9), generator=torch.Generator().manual_seed(seed))
    add_language_model_gradient(network, theta, rows, total, scale=0.1, micro_batch_size=2)
    with torch.no_grad():
        network.features(theta, random_episode(seed).query, "fim")
    return total.result()


@pytest.mark.parametrize("mode", ["block", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_gradients_equal_eager_gradients(theta: Parameters, mode: CompileMode, dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in theta.items()}
    wanted = gradient_of(network_of("none", dtype=dtype), weights)
    got = gradient_of(network_of(mode, dtype=dtype), weights)
    assert relative_error(got, wanted) < (1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.slow
@pytest.mark.timeout(600)  # inductor compiles, possibly on a busy machine
def test_gradients_through_inductor_equal_eager_gradients(tmp_path: Path) -> None:
    """Also where the first backward pass of a graph did not keep it, in this process and in one that filled the
    cache.
    """

    def error_of(*arguments: str) -> float:
        command = [sys.executable, "-m", "tests.numerics.workers.compiled_gradient", *arguments]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        found = re.search(r"relative error (\S+)", done.stdout)
        assert found is not None
        return float(found[1])

    assert error_of("evaluate", "train") < 1e-5
    assert error_of("train") < 1e-5


@pytest.mark.parametrize("mode", ["block", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_recompilation_after_the_first_steps(theta: Parameters, mode: CompileMode, dtype: torch.dtype) -> None:
    network = network_of(mode, dtype=dtype)

    def step(seed: int, measure: bool) -> None:
        moved = {name: (weight + 0.01 * seed).to(dtype) for name, weight in theta.items()}
        gradient_of(network, moved, seed, measure)

    # one step with metrics and one without
    step(0, measure=True)
    step(1, measure=False)
    graphs = counters["stats"]["unique_graphs"]
    # graphs: support and rows with gradients, query without, the loss, and the first and the next inner update. Support
    # and query have one shape. bf16 has another graph for the last update if the fp32 weights are not requested
    assert graphs == (6 if dtype == torch.float32 else 7)
    for seed in range(2, 5):
        step(seed, measure=seed % 2 == 0)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_tasks_of_many_sizes_compile_few_graphs(theta: Parameters) -> None:
    skeleton = build_model_skeleton(SHAPE, META, N_WAY, vocab_size=61)
    eager = network_of("none")
    network = FunctionalModel(
        skeleton, torch.float32, META.feature_squared_norm, "model", "aot_eager", tasks_differ=True
    )
    for count in range(2, 17):
        contexts = random_episode(count, n_way=1, k_shot=count).support
        with torch.no_grad():
            torch.testing.assert_close(
                network.features(theta, contexts, "fim"), eager.features(theta, contexts, "fim"), rtol=1e-4, atol=1e-5
            )
    # graphs for 2, 3, 4, 6, 8, 12 and 16 contexts
    assert counters["stats"]["unique_graphs"] == 7


def test_learned_rates_are_compiled_once(theta: Parameters) -> None:
    meta = META.model_copy(update={"learner": "meta_sgd"})
    module = build_meta_model(SHAPE, meta, N_WAY, vocab_size=61, seed=0)
    networks = {
        mode: FunctionalModel(
            build_model_skeleton(SHAPE, meta, N_WAY, 61), torch.float32, META.feature_squared_norm, mode, "aot_eager"
        )
        for mode in ("none", "model")
    }
    for seed in range(3):
        weights = {name: weight.detach() + 0.01 * seed for name, weight in module.named_parameters()}
        results = {}
        for mode, network in networks.items():
            total = GradientSum(weights)
            add_task_gradient(network, weights, random_episode(seed), "fim", meta, total, 1.0)
            results[mode] = total.result()
        assert relative_error(results["model"], results["none"]) < 1e-5
        if seed == 0:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs
