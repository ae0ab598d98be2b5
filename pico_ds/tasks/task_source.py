"""Interface of task sources, and a mix of two of them."""

from typing import Protocol, runtime_checkable

from pico_ds.config import Readout
from pico_ds.data.keyed_random import keyed_uniform
from pico_ds.tasks.episode import Episode


@runtime_checkable
class TaskSource(Protocol):
    """Provides tasks by outer step and index."""

    @property
    def readout(self) -> Readout:
        """Position at which features are read."""

    @property
    def sequence_length(self) -> int:
        """Length of every context, including padding [tokens]."""

    def sample(self, step: int, index: int) -> Episode:
        """Return task `index` of outer step `step`, a pure function of (seed, step, index)."""


class MixedTasks:
    """Mixes two task sources. Each (step, index) always uses the same source."""

    def __init__(self, common: TaskSource, injected: TaskSource, ratio: float, seed: int) -> None:
        """
        Args:
            ratio: share of the tasks that are injected.
        """
        assert (common.readout, common.sequence_length) == (injected.readout, injected.sequence_length)
        self._common, self._injected, self._ratio, self._seed = common, injected, ratio, seed

    @property
    def readout(self) -> Readout:
        """Position at which features are read."""
        return self._common.readout

    @property
    def sequence_length(self) -> int:
        """Length of every context, including padding [tokens]."""
        return self._common.sequence_length

    def is_injected(self, step: int, index: int) -> bool:
        """Return whether a task comes from the injected source."""
        return keyed_uniform("inject", self._seed, step, index) < self._ratio

    def sample(self, step: int, index: int) -> Episode:
        """Return task `index` of outer step `step`, a pure function of (seed, step, index)."""
        source = self._injected if self.is_injected(step, index) else self._common
        return source.sample(step, index)
