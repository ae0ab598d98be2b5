"""Autoregressive language modelling without tasks."""

from typing import Any, NoReturn

from pico_ds.meta.learners.base import Learner, PassCounts


class Autoregressive(Learner):
    """A control that trains only on autoregressive steps. It is evaluated on tasks like the other learners."""

    def add_gradient(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("an autoregressive run has no meta steps")

    def pass_counts(self, step: int) -> PassCounts:
        return PassCounts(0, 0)
