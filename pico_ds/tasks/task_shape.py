"""Samples the number of classes and contexts of each task, and applies the curriculum."""

from dataclasses import dataclass

from pico_ds.config import SmlmtConfig
from pico_ds.data.keyed_random import keyed_rng


@dataclass(frozen=True)
class TaskShape:
    """Number of classes of a task, and of support and query contexts of each class."""

    n_way: int
    k_shot: int
    q_query: int

    @property
    def per_class(self) -> int:
        """Number of contexts of a class."""
        return self.k_shot + self.q_query


class TaskShapes:
    """The shape of every training task, a pure function of (seed, step, index).

    If `smlmt.n_way` or `k_shot` is a range, each task samples a value from it. With a curriculum, the range starts at
    the easiest shape (few classes, many examples) and has its full size `smlmt.curriculum_steps` after the warm-up.
    """

    def __init__(self, config: SmlmtConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self.largest = TaskShape(config.n_ways[1], config.k_shots[1], config.q_query)
        self._fixed = config.n_ways[0] == config.n_ways[1] and config.k_shots[0] == config.k_shots[1]

    def at(self, step: int, index: int) -> TaskShape:
        """Return the shape of task `index` of outer step `step`."""
        if self._fixed:
            return self.largest
        rng, progress = keyed_rng("shape", self._seed, step, index), self.progress(step)
        (min_way, max_way), (min_shot, max_shot) = self._config.n_ways, self._config.k_shots
        return TaskShape(
            int(rng.integers(min_way, min_way + round(progress * (max_way - min_way)) + 1)),
            int(rng.integers(max_shot - round(progress * (max_shot - min_shot)), max_shot + 1)),
            self._config.q_query,
        )

    def progress(self, step: int) -> float:
        """Return the progress of the curriculum, 0 to 1; 1 without a curriculum."""
        if not self._config.curriculum_steps:
            return 1.0
        return min(1.0, max(0.0, (step - self._config.warmup_steps) / self._config.curriculum_steps))

    def contexts(self, step: int, n_tasks: int) -> tuple[int, int]:
        """Return the total number of support and query contexts of the first `n_tasks` tasks of a step."""
        if self._fixed:
            n_classes = n_tasks * self.largest.n_way
            return n_classes * self.largest.k_shot, n_classes * self.largest.q_query
        shapes = [self.at(step, index) for index in range(n_tasks)]
        support = sum(shape.n_way * shape.k_shot for shape in shapes)
        return support, sum(shape.n_way * shape.q_query for shape in shapes)
