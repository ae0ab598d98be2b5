"""Plain language modelling."""

from typing import Any, NoReturn

from pico_ds.meta.learners.base import Learner, PassCounts


class Autoregressive(Learner):
    """No step on tasks at all: the other control. It is evaluated like the others, at the head where it starts."""

    def add_gradient(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("an autoregressive run has no step on tasks")

    def pass_counts(self, step: int) -> PassCounts:
        return PassCounts(0, 0)
