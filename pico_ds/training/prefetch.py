"""What a rank computes on in an outer step, made in the background while the step before it computes."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from pico_ds.config import RunConfig
from pico_ds.data.rows import TrainingRows
from pico_ds.engine.distributed import Process
from pico_ds.tasks.episode import Episode
from pico_ds.tasks.step_schedule import StepKind, step_kind
from pico_ds.tasks.task_source import TaskSource


@dataclass(frozen=True)
class Batch:
    """This rank's share of one outer step, on the host; rows in autoregressive steps, episodes in meta steps."""

    rows: Int[Tensor, "rows length"] | None
    episodes: list[Episode]


class Prefetcher:
    """Batches by position; the next one is made ahead.

    A batch is a function of (seed, step, position), so that making one ahead changes nothing but the time it takes.
    """

    def __init__(self, config: RunConfig, rows: TrainingRows, tasks: TaskSource | None, process: Process) -> None:
        self._config, self._rows, self._tasks, self._process = config, rows, tasks, process
        self._executor = ThreadPoolExecutor(1, "feed", initializer=process.select_device)
        self._ahead: dict[tuple[int, int], Future[Batch]] = {}

    def take(self, step: int, first_row: int) -> tuple[Batch, float]:
        """The batch of a step, and the seconds for which it was waited; the next one is begun.

        Args:
            first_row: global position of the step's first row.
        """
        started = time.perf_counter()
        begun = self._ahead.pop((step, first_row), None)
        batch = self._make(step, first_row) if begun is None else begun.result()
        waited = time.perf_counter() - started
        # what was begun for a step that is not the next one, as after a resume, is of no use
        self._ahead.clear()
        if step + 1 < self._config.training.max_steps:
            count = self._config.training.global_batch_size if self._kind(step) == "ar" else 0
            following = (step + 1, first_row + count)
            self._ahead[following] = self._executor.submit(self._make, *following)
        return batch, waited

    def _kind(self, step: int) -> StepKind:
        return step_kind(step, self._config)

    def _make(self, step: int, first_row: int) -> Batch:
        process = self._process
        if self._kind(step) == "ar":
            count = self._config.training.global_batch_size
            mine = self._rows.take(first_row, count, process.rank, process.world_size)
            return Batch(process.pinned(mine), [])
        assert self._tasks is not None
        share = range(process.rank, self._config.meta.tasks_per_step, process.world_size)
        return Batch(None, [self._tasks.sample(step, index).map(process.pinned) for index in share])
