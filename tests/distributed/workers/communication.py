"""Counts the collectives of one outer step, by stage, inner steps and tasks per rank."""

from typing import Any

import torch

from pico_ds.config import parse_config
from pico_ds.config.deepspeed_config import load_deepspeed_config, resolve_deepspeed_config
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from scripts.benchmarks.communication import CountCollectives
from tests.fomaml_reference import SHAPE, add_task_gradient, random_episode


def count_communication(process: Process) -> dict[str, dict[str, Any]]:
    """Calls and bytes of each collective."""
    table = {}
    for stage in range(4):
        for inner_steps, tasks_per_rank in ((1, 1), (8, 1), (1, 4)):
            config = parse_config("smlmt: {n_way: 3}", [f"meta.inner_steps={inner_steps}"])
            settings = resolve_deepspeed_config(
                load_deepspeed_config(f"ds_configs/zero{stage}.json"), config, process.world_size
            )
            module = build_meta_model(SHAPE, config.meta, n_way=3, vocab_size=61, seed=0)
            n_parameters = sum(weight.numel() for weight in module.parameters())
            engine = MetaEngine(module, config.training, settings, process)
            network = FunctionalModel(build_model_skeleton(SHAPE, config.meta, 3, 61), torch.float32, 4.0)
            for step in range(2):  # the first step may include initialization
                with CountCollectives() as counted:
                    theta = engine.full_parameters(for_update=True)
                    gradient = GradientSum(theta)
                    for i in range(tasks_per_rank):
                        episode = random_episode(i + 10 * step + 100 * process.rank)
                        add_task_gradient(network, theta, episode, "fim", config.meta, gradient, scale=0.5)
                    engine.apply_gradient(gradient.result(), lr=1e-3)
            table[f"zero{stage}/inner{inner_steps}/tasks{tasks_per_rank}"] = {
                "calls": counted.calls,
                "bytes": counted.bytes,
                "weight_bytes": 4 * n_parameters,
            }
    return table
