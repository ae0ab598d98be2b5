"""Collectives of one outer step, counted at the dispatcher, below DeepSpeed and torch.distributed."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pico_ds.config import parse_config
from pico_ds.config.deepspeed import load_deepspeed_config, resolve_deepspeed_config
from pico_ds.engine.distributed import start_process, stop_process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.meta.network import Network
from pico_ds.meta.outer_gradient import add_task_gradient, zero_gradient
from pico_ds.model.meta_model import build_meta_model, build_twin
from tests.reference import SHAPE, random_episode


class CountCollectives(TorchDispatchMode):
    """Calls and input bytes of every c10d operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__.split(".")[0].strip("_")
            self.calls[name] += 1
            self.bytes[name] += max(
                (leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)), default=0
            )
        return func(*args, **(kwargs or {}))


def main() -> None:
    process = start_process()
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
            network = Network(build_twin(SHAPE, config.meta, 3, 61), torch.float32, 4.0)
            for step in range(2):  # the first step may set things up
                with CountCollectives() as counted:
                    theta = engine.full_parameters(for_update=True)
                    gradient = zero_gradient(theta)
                    for i in range(tasks_per_rank):
                        episode = random_episode(i + 10 * step + 100 * process.rank)
                        add_task_gradient(network, theta, episode, "fim", config.meta, gradient, scale=0.5)
                    engine.apply_gradient(gradient, lr=1e-3)
            table[f"zero{stage}/inner{inner_steps}/tasks{tasks_per_rank}"] = {
                "calls": counted.calls,
                "bytes": counted.bytes,
                "weight_bytes": 4 * n_parameters,
            }
    Path(sys.argv[1]).write_text(json.dumps(table))
    stop_process()


if __name__ == "__main__":
    main()
