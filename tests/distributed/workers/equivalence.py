"""Compares N ranks under every ZeRO stage with a plain PyTorch loop over the same tasks."""

import copy
import math
from typing import Any

import torch

from pico_ds.config import TrainingConfig, parse_config
from pico_ds.config.deepspeed_config import load_deepspeed_config, resolve_deepspeed_config
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.optimizer_state import STATE_KINDS, OptimizerState
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.meta_model import MetaModel
from tests.fomaml_reference import (
    SHAPE,
    add_task_gradient,
    language_model_gradients,
    random_episode,
    relative_error,
    task_gradients,
)

CONFIG = parse_config("""
training: {lr: 3e-3, max_grad_norm: 0.5}
meta: {inner_steps: 2, inner_lr: 0.1, head_inner_lr: 0.5, head: linear}
smlmt: {n_way: 3}
""")
#: tasks of each outer step: even shares, uneven shares, fewer tasks than ranks; 0 is an autoregressive step
TASKS_PER_STEP = (4, 3, 1, 0, 5)
ROWS = 3


def rows_of(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randint(0, SHAPE.vocab_size, (ROWS, 9), generator=generator)


def adamw(module: MetaModel, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW without weight decay of norms, biases and embeddings."""
    decayed = [p for n, p in module.named_parameters() if p.ndim >= 2 and "decoder.embedding_proj" not in n]
    ids = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": [p for p in module.parameters() if id(p) not in ids], "weight_decay": 0.0},
    ]
    betas = (training.adam_beta1, training.adam_beta2)
    return torch.optim.AdamW(groups, lr=training.lr, betas=betas, eps=training.adam_eps)


def train_reference(module: MetaModel) -> dict[str, torch.Tensor]:
    training = CONFIG.training
    optimizer = adamw(module, training)
    for step, n_tasks in enumerate(TASKS_PER_STEP):
        if n_tasks:
            each = [task_gradients(module, random_episode(100 * step + i), CONFIG.meta) for i in range(n_tasks)]
            mean = {name: sum(g[name] for g in each) / n_tasks for name in each[0]}
        else:
            mean = language_model_gradients(module, rows_of(step))
        for name, parameter in module.named_parameters():
            parameter.grad = mean[name]
        torch.nn.utils.clip_grad_norm_(module.parameters(), training.max_grad_norm)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def fingerprint(engine: MetaEngine) -> dict[str, Any]:
    """The state that DeepSpeed keeps between steps: counters, weights, gradients, master weights and moments."""
    inner = engine._engine
    counters = {name: getattr(inner, name) for name in ("global_steps", "micro_steps", "global_samples")}
    tensors = [weight.data for weight in inner.module.parameters()]
    tensors += [getattr(weight, "ds_tensor", weight).data for weight in inner.module.parameters()]
    wrapped = getattr(inner.optimizer, "optimizer", inner.optimizer)
    for group in wrapped.param_groups:
        tensors += [weight.data for weight in group["params"]]
        for weight in group["params"]:
            tensors += [value for value in wrapped.state[weight].values() if torch.is_tensor(value)]
    gradients = [float(weight.grad.abs().sum()) for weight in inner.module.parameters() if weight.grad is not None]
    return {**counters, "tensors": [tensor.clone() for tensor in tensors], "gradients": gradients}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    pairs = zip(a.pop("tensors"), b.pop("tensors"), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and a == b


def share_of_gradient(
    network: FunctionalModel, theta: dict[str, torch.Tensor], step: int, process: Process
) -> dict[str, torch.Tensor]:
    """This rank's part of the outer gradient of a step, scaled so that the mean over ranks is the gradient."""
    gradient, n_tasks = GradientSum(theta), TASKS_PER_STEP[step]
    if n_tasks:
        for i in range(process.rank, n_tasks, process.world_size):
            episode = random_episode(100 * step + i).to(process.device)
            add_task_gradient(network, theta, episode, "fim", CONFIG.meta, gradient, scale=process.world_size / n_tasks)
    else:
        rows = rows_of(step)[process.rank :: process.world_size].to(process.device)
        add_language_model_gradient(
            network, theta, rows, gradient, scale=process.world_size / (ROWS * 8), micro_batch_size=1
        )
    return gradient.result()


def train_engine(engine: MetaEngine, network: FunctionalModel) -> tuple[dict[str, torch.Tensor], bool]:
    untouched = True
    for step in range(len(TASKS_PER_STEP)):
        theta = engine.full_parameters(for_update=True)
        before, theta_before = fingerprint(engine), {name: weight.clone() for name, weight in theta.items()}
        gradient = share_of_gradient(network, theta, step, engine.process)
        untouched &= same(before, fingerprint(engine))
        untouched &= all(torch.equal(theta_before[name], theta[name]) for name in theta)
        engine.apply_gradient(gradient, CONFIG.training.lr)
    return {name: weight.cpu() for name, weight in engine.full_parameters().items()}, untouched


def state_of(engine: MetaEngine) -> list[torch.Tensor]:
    """Weights, master weights, moments, and the optimizer's step count."""
    state = OptimizerState(engine)
    held = [state.read(fragment, kind).clone() for fragment in state.fragments for kind in STATE_KINDS]
    return [*(weight.clone() for weight in engine.full_parameters().values()), *held, torch.tensor(state.steps)]


def unchanged_after_nonfinite_gradients(engine: MetaEngine) -> dict[str, bool]:
    """Whether the state stays unchanged after a NaN on one rank, after a nonfinite loss, and after a valid step."""
    found = {}
    cases = {"nan": (math.nan, None), "nonfinite loss": (1.0, False), "valid": (1.0, True)}
    for case, (value, finite_loss) in cases.items():
        before = state_of(engine)
        theta = engine.full_parameters(for_update=True)
        gradient = {name: torch.ones_like(weight) for name, weight in theta.items()}
        if engine.process.is_main:
            gradient["decoder.output_norm.weight"][0] = value
        norm = engine.apply_gradient(gradient, 1e-3, None if finite_loss is None else torch.tensor(finite_loss))
        assert bool(norm.isfinite()) is not math.isnan(value)
        found[case] = all(torch.equal(x, y) for x, y in zip(before, state_of(engine), strict=True))
    return found


def compare_with_plain_loop(process: Process, ds_configs: list[str]) -> dict[str, Any]:
    """The relative error of each DeepSpeed configuration, and whether it leaves the state unchanged."""
    initial = build_meta_model(SHAPE, CONFIG.meta, n_way=3, vocab_size=61, seed=0)
    wanted = train_reference(copy.deepcopy(initial))
    network = FunctionalModel(
        build_model_skeleton(SHAPE, CONFIG.meta, n_way=3, vocab_size=61),
        torch.float32,
        CONFIG.meta.feature_squared_norm,
    )
    errors = {}
    for name in ds_configs:
        content = load_deepspeed_config(f"ds_configs/{name}.json")
        settings = resolve_deepspeed_config(content, CONFIG, process.world_size)
        engine = MetaEngine(copy.deepcopy(initial), CONFIG.training, settings, process)
        got, untouched = train_engine(engine, network)
        error = relative_error(got, wanted)
        errors[name] = {
            "relative_error": error,
            "untouched": untouched,
            "kept": unchanged_after_nonfinite_gradients(engine),
        }
    return errors
