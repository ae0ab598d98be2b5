"""Compares what the device computes with fp32 or CPU arithmetic. Runs on the ranks of one process per device."""

import torch

from pico_ds.config import MetaConfig
from pico_ds.engine.distributed import Process
from pico_ds.meta.functional_model import CompileMode, FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.learners import EpisodeBatch, make_learner
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.attention_kernels.kernel_choice import (
    AttentionShape,
    check_kernel,
    choose_attention,
    choose_batched_attention,
)
from pico_ds.model.attention_kernels.kernel_loading import BACKENDS, UnavailableError, load_backend
from pico_ds.tasks.episode import Episode
from tests.distributed.workers.equivalence import compare_with_plain_loop
from tests.fomaml_reference import SHAPE, random_episode, relative_error

from .results import Result, at_most

#: largest accepted relative error between a GPU and a CPU in fp32, after five AdamW steps
_FP32_ERROR = 1e-4
_META = MetaConfig(inner_steps=3, inner_lr=0.05, head_inner_lr=0.5)
_N_WAY, _VOCAB_SIZE = 3, 61


def check_kernels(process: Process) -> list[Result]:
    """Check output and gradients of every attention kernel against fp32 arithmetic, for rows and for contexts."""
    on_gpu = process.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    shape = AttentionShape(process.device, dtype, n_heads=16, n_kv_heads=4, head_dim=128 if on_gpu else 16)
    results = []
    for name in BACKENDS:
        for length in (67, 2048 if on_gpu else 128):
            title = f"{name}, {length} tokens"
            try:
                check_kernel(load_backend(name, process.device), shape, length)
            except UnavailableError as problem:
                # a kernel that is missing is not an error, but a kernel with wrong results is
                results.append(Result(title, str(problem), passed=False if "is wrong" in str(problem) else None))
            else:
                results.append(Result(title, "agrees with fp32", "agrees", True))
    kernels, _ = choose_attention("auto", shape, [67, 2048 if on_gpu else 128])
    results += [Result(f"chosen for {length} tokens", kernel.name) for length, kernel in kernels.items()]
    return results


def check_zero_stages(process: Process) -> list[Result]:
    """Train FOMAML and rows under ZeRO 1 to 3, and compare the weights with a plain loop on the CPU."""
    found = compare_with_plain_loop(process, ["zero1", "zero2", "zero3"])
    results = []
    for name, outcome in found.items():
        title = f"{name}, {process.world_size} rank(s)"
        results.append(at_most(f"{title}: error of the weights", outcome["relative_error"], _FP32_ERROR, ""))
        results.append(_holds(f"{title}: the inner loop changes no state of the engine", outcome["untouched"]))
        kept = outcome["kept"] == {"nan": True, "nonfinite loss": True, "valid": False}
        results.append(_holds(f"{title}: a gradient that is not finite changes nothing", kept))
    return results


def check_compilation(process: Process) -> list[Result]:
    """Compare the compiled gradient of a task and of rows with the eager one.

    On a CPU, graphs are captured, but inductor does not compile them, which would take minutes.
    """
    backend = "inductor" if process.device.type == "cuda" else "aot_eager"
    results = []
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        eager = _gradient(process, _network("none", dtype), [random_episode(0)], dtype)
        compiled = _gradient(process, _network("model", dtype, backend), [random_episode(0)], dtype)
        title = f"compiled against eager, {str(dtype).removeprefix('torch.')}"
        results.append(at_most(title, relative_error(compiled, eager), limit, ""))
    return results


def check_batched_tasks(process: Process) -> list[Result]:
    """Compare the gradient of a batch of tasks, computed by `vmap`, with a loop over the tasks."""
    episodes = [random_episode(seed) for seed in range(4)]
    loop = _gradient(process, _network("none", torch.float32), episodes, torch.float32)
    shape = AttentionShape(
        process.device,
        torch.float32,
        SHAPE.attention_n_heads,
        SHAPE.attention_n_kv_heads,
        SHAPE.d_model // SHAPE.attention_n_heads,
    )
    kernels, _ = choose_attention("auto", shape, [9])
    name, attend = choose_batched_attention(kernels[9], shape, 9)
    skeleton = build_model_skeleton(SHAPE, _META, _N_WAY, _VOCAB_SIZE)
    network = FunctionalModel(skeleton, torch.float32, _META.feature_squared_norm, attend_batch=attend)
    batch = _gradient(process, network, [Episode.stack(episodes)], torch.float32)
    return [at_most(f"vmap against a loop, {name}", relative_error(batch, loop), 1e-5, "")]


def _network(mode: CompileMode, dtype: torch.dtype, backend: str = "inductor") -> FunctionalModel:
    skeleton = build_model_skeleton(SHAPE, _META, _N_WAY, _VOCAB_SIZE)
    return FunctionalModel(skeleton, dtype, _META.feature_squared_norm, mode, backend)


def _gradient(
    process: Process, network: FunctionalModel, episodes: list[Episode], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    module = build_meta_model(SHAPE, _META, _N_WAY, _VOCAB_SIZE, seed=0)
    theta = {name: weight.detach().to(process.device, dtype) for name, weight in module.named_parameters()}
    learner, total = make_learner(_META, network.skeleton.decoder), GradientSum(theta)
    for episode in episodes:
        batch = EpisodeBatch(network, theta, episode.to(process.device), "fim", measure=False)
        learner.add_gradient(batch, total, scale=1.0)
    rows = torch.randint(0, _VOCAB_SIZE, (4, 9), generator=torch.Generator().manual_seed(0)).to(process.device)
    add_language_model_gradient(network, theta, rows, total, scale=0.1, micro_batch_size=2)
    return {name: gradient.float() for name, gradient in total.result().items()}


def _holds(name: str, condition: bool) -> Result:
    return Result(name, "yes" if condition else "no", "yes", condition)
