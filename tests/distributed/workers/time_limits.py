"""Exceeds the time limit of a collective in a process group that DeepSpeed has created."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from pico_ds.config import parse_config
from pico_ds.config.deepspeed_config import load_deepspeed_config, resolve_deepspeed_config
from pico_ds.engine.distributed import Process, limit_collectives
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.meta.meta_model_builder import build_meta_model
from tests.fomaml_reference import SHAPE


def exceed_time_limit(process: Process) -> dict[str, Any]:
    """The limits of all groups after an engine is built [s], and the error of rank 0, for which rank 1 is too late."""
    config = parse_config("smlmt: {n_way: 3}", ["training.hang_timeout_seconds=2000"])
    settings = resolve_deepspeed_config(load_deepspeed_config("ds_configs/zero2.json"), config, process.world_size)
    module = build_meta_model(SHAPE, config.meta, n_way=3, vocab_size=61, seed=0)
    MetaEngine(module, config.training, settings, process)
    groups = list(torch.distributed.distributed_c10d._world.pg_map)
    limits = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]
    limit_collectives(timedelta(seconds=1))
    error = "none"
    if process.rank == 1:
        time.sleep(3)
    else:
        try:
            torch.distributed.all_reduce(torch.ones(1), group=groups[-1])
        except RuntimeError as timeout:
            error = str(timeout)
    limit_collectives(timedelta(minutes=1))
    return {"limits": limits, "error": error}
