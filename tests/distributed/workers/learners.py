"""Compares every learner under ZeRO 1 to 3 with a plain PyTorch loop over the tasks of all ranks."""

import copy

import torch

from pico_ds.config import RunConfig, parse_config
from pico_ds.config.deepspeed_config import load_deepspeed_config, resolve_deepspeed_config
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.meta_model import MetaModel
from tests.distributed.workers.equivalence import adamw
from tests.fomaml_reference import SHAPE, add_task_gradient, random_episode, relative_error
from tests.learner_reference import reference_gradient

CASES = {
    "fomaml": "head: linear, multi_step_loss: true",
    "anil": "head: vocab",
    "boil": "head: prototype",
    "reptile": "head: generated",
    "meta_sgd": "head: prototype, learned_rates: layer",
    "protonet": "head: prototype",
    "multitask": "head: vocab",
    "masked_word": "head: prototype",
}
#: tasks of each outer step: uneven shares, and fewer tasks than ranks
TASKS_PER_STEP = (3, 1, 4)


def config_of(learner: str) -> RunConfig:
    meta = f"learner: {learner}, {CASES[learner]}, inner_steps: 2, inner_lr: 0.05, head_inner_lr: 0.5"
    training = "training: {lr: 3e-3, max_grad_norm: 0.5}"
    return parse_config(
        f"{{smlmt: {{n_way: 3}}, {training}, meta: {{{meta}, vocab_head_layers: 3, vocab_head_width: 8}}}}"
    )


def train_reference(module: MetaModel, config: RunConfig) -> dict[str, torch.Tensor]:
    optimizer = adamw(module, config.training)
    weights = [0.5, 0.5] if config.meta.multi_step_loss else None
    for step, n_tasks in enumerate(TASKS_PER_STEP):
        episodes = [random_episode(100 * step + i) for i in range(n_tasks)]
        each = [reference_gradient(module, episode, config.meta, weights) for episode in episodes]
        for name, parameter in module.named_parameters():
            parameter.grad = sum(gradient[name] for gradient in each) / n_tasks
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.training.max_grad_norm)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def train_engine(engine: MetaEngine, network: FunctionalModel, config: RunConfig) -> dict[str, torch.Tensor]:
    rank, world_size = engine.process.rank, engine.process.world_size
    for step, n_tasks in enumerate(TASKS_PER_STEP):
        theta = engine.full_parameters(for_update=True)
        total = GradientSum(theta)
        for i in range(rank, n_tasks, world_size):
            episode = random_episode(100 * step + i)
            add_task_gradient(network, theta, episode, "fim", config.meta, total, world_size / n_tasks, measure=False)
        engine.apply_gradient(total.result(), config.training.lr)
    return engine.full_parameters()


def learner_errors(process: Process) -> dict[str, dict[int, float]]:
    """Relative error of each learner by ZeRO stage."""
    errors: dict[str, dict[int, float]] = {}
    for learner in CASES:
        config = config_of(learner)
        initial = build_meta_model(SHAPE, config.meta, 3, vocab_size=61, seed=0)
        wanted = train_reference(copy.deepcopy(initial), config)
        skeleton = build_model_skeleton(SHAPE, config.meta, 3, vocab_size=61)
        network = FunctionalModel(skeleton, torch.float32, config.meta.feature_squared_norm)
        for stage in (1, 2, 3):
            settings = resolve_deepspeed_config(
                load_deepspeed_config(f"ds_configs/zero{stage}.json"), config, process.world_size
            )
            engine = MetaEngine(copy.deepcopy(initial), config.training, settings, process)
            got = train_engine(engine, network, config)
            errors.setdefault(learner, {})[stage] = relative_error(got, wanted)
    return errors
