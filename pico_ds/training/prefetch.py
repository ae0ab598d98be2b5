"""Prefetches the data of the next outer step in the background."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from pico_ds.config import RunConfig
from pico_ds.data.rows import TrainingRows
from pico_ds.engine.distributed import Process
from pico_ds.tasks.episode import Episode
from pico_ds.tasks.hybrid_schedule import StepKind, step_kind
from pico_ds.tasks.task_source import TaskSource


@dataclass(frozen=True)
class Batch:
    """This rank's data for one outer step, on the host: rows in autoregressive steps, episodes in meta steps."""

    rows: Int[Tensor, "rows length"] | None
    episodes: list[Episode]


class Prefetcher:
    """Makes the batch of each step, and prefetches the batch of the next step.

    A batch depends only on (seed, step, position), so prefetching does not change it.
    """

    def __init__(self, config: RunConfig, rows: TrainingRows, tasks: TaskSource | None, process: Process) -> None:
        self._config, self._rows, self._tasks, self._process = config, rows, tasks, process
        self._executor = ThreadPoolExecutor(1, "feed", initializer=process.select_device)
        self._prefetched: dict[tuple[int, int], Future[Batch]] = {}

    def take(self, step: int, first_row: int) -> tuple[Batch, float]:
        """Return the batch of a step and the seconds spent waiting for it. Start to prefetch the next batch.

        Args:
            first_row: global position of the step's first row.
        """
        started = time.perf_counter()
        future = self._prefetched.pop((step, first_row), None)
        batch = self._make_batch(step, first_row) if future is None else future.result()
        waited = time.perf_counter() - started
        # drop a batch that was prefetched for another step, for example after a resume
        self._prefetched.clear()
        if step + 1 < self._config.training.max_steps:
            count = self._config.training.global_batch_size if self._kind(step) == "ar" else 0
            next_key = (step + 1, first_row + count)
            self._prefetched[next_key] = self._executor.submit(self._make_batch, *next_key)
        return batch, waited

    def _kind(self, step: int) -> StepKind:
        return step_kind(step, self._config)

    def _make_batch(self, step: int, first_row: int) -> Batch:
        process = self._process
        if self._kind(step) == "ar":
            count = self._config.training.global_batch_size
            local_rows = self._rows.take(first_row, count, process.rank, process.world_size)
            return Batch(process.pinned(local_rows), [])
        assert self._tasks is not None
        local_indices = range(process.rank, self._config.meta.tasks_per_step, process.world_size)
        return Batch(None, [self._tasks.sample(step, index).map(process.pinned) for index in local_indices])
