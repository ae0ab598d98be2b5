"""Tasks from a sequence of pools of text."""

from collections.abc import Callable
from functools import partial
from threading import Lock

from pico_ds.config import Readout, SmlmtConfig
from pico_ds.data.background_call import Background
from pico_ds.tasks.episode import Episode
from pico_ds.tasks.task_source import TaskSource


class PooledTasks:
    """Switches to the next pool every `smlmt.pool_steps` steps. A background thread builds the next pool in advance."""

    def __init__(self, make: Callable[[int], TaskSource], config: SmlmtConfig, last_step: int) -> None:
        """
        Args:
            make: returns the tasks of pool `number`; a pure function.
            last_step: last step of training; no pool for later steps is built in advance.

        Raises:
            DataError, TaskError: the first pool cannot supply the tasks.
        """
        self._make, self._config, self._last = make, config, self._number_at(config, last_step)
        self._pools: dict[int, Background[TaskSource]] = {}
        self._lock = Lock()
        self._first = self._pool(0)

    @property
    def readout(self) -> Readout:
        """Position at which features are read."""
        return self._first.readout

    @property
    def sequence_length(self) -> int:
        """Length of every context, including padding [tokens]."""
        return self._first.sequence_length

    def sample(self, step: int, index: int) -> Episode:
        """Return task `index` of outer step `step`, a pure function of (seed, step, index).

        Raises:
            DataError, TaskError: the pool of the step cannot be read, or cannot supply the tasks.
        """
        return self._pool(self._number_at(self._config, step)).sample(step, index)

    @staticmethod
    def _number_at(config: SmlmtConfig, step: int) -> int:
        return max(0, step - config.warmup_steps) // config.pool_steps

    def _pool(self, number: int) -> TaskSource:
        with self._lock:
            # earlier pools are dropped to free their memory
            numbers = [number] + ([number + 1] if number < self._last else [])
            self._pools = {
                other: self._pools.get(other) or Background(partial(self._make, other), f"pool {other}")
                for other in numbers
            }
            pool = self._pools[number]
        return pool.result()
