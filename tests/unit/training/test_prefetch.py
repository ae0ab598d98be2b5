"""Prefetched batches equal batches that are made directly."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from pico_ds.config import parse_config
from pico_ds.data.rows import ShuffledRows, TokenRows
from pico_ds.data.token_stream import TokenStream
from pico_ds.engine.distributed import Process
from pico_ds.tasks.hybrid_schedule import step_kind
from pico_ds.training.prefetch import Prefetcher
from tests.fomaml_reference import random_episode

CONFIG = parse_config(
    "{smlmt: {hybrid_ratio: 0.5, warmup_steps: 2}, meta: {tasks_per_step: 5}, "
    "training: {global_batch_size: 5, max_steps: 12}, data: {sequence_length: 8}}"
)


class Tasks:
    sequence_length = 9

    def __init__(self) -> None:
        self.threads: list[str] = []

    def sample(self, step: int, index: int) -> Any:
        self.threads.append(threading.current_thread().name)
        return random_episode(100 * step + index)


def make_prefetcher(rank: int, world_size: int, tasks: Any) -> Prefetcher:
    tokens = np.arange(1000)
    rows = ShuffledRows(TokenRows(TokenStream(tokens, np.array([1000])), 8), seed=0)
    return Prefetcher(CONFIG, rows, tasks, Process(rank, world_size, rank, torch.device("cpu")))


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (2, 3)])
def test_prefetched_batch_equals_directly_made_batch(rank: int, world_size: int) -> None:
    """Compare a prefetcher that takes all steps in order with new prefetchers, which take only one step each."""
    prefetcher, tasks = make_prefetcher(rank, world_size, Tasks()), Tasks()
    position = 0
    for step in range(12):
        batch, waited = prefetcher.take(step, position)
        direct, _ = make_prefetcher(rank, world_size, tasks).take(step, position)
        assert waited >= 0
        if step_kind(step, CONFIG) == "ar":
            assert batch.rows is not None
            assert torch.equal(batch.rows, direct.rows)
            assert len(batch.rows) == len(range(rank, 5, world_size))
            position += 5
        else:
            assert batch.rows is None
            keys = [100 * step + index for index in range(rank, 5, world_size)]
            for episode, other, key in zip(batch.episodes, direct.episodes, keys, strict=True):
                for expected in (other, random_episode(key)):
                    assert torch.equal(episode.support.input_ids, expected.support.input_ids)
                    assert torch.equal(episode.query.labels, expected.query.labels)


def test_tasks_are_sampled_in_the_background_thread() -> None:
    tasks = Tasks()
    prefetcher = make_prefetcher(0, 1, tasks)
    position = 0
    for step in range(12):
        prefetcher.take(step, position)
        position += 5 * (step_kind(step, CONFIG) == "ar")
    assert tasks.threads
    assert all(name.startswith("feed") for name in tasks.threads)


def test_prefetch_error_is_raised_at_its_step() -> None:
    class Failing(Tasks):
        def sample(self, step: int, index: int) -> Any:
            raise OSError("the data disk failed")

    prefetcher, position = make_prefetcher(0, 1, Failing()), 0
    first_meta = next(step for step in range(12) if step_kind(step, CONFIG) == "meta")
    for step in range(first_meta):
        prefetcher.take(step, position)
        position += 5
    with pytest.raises(OSError, match="the data disk failed"):
        prefetcher.take(first_meta, position)
