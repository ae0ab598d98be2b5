"""Plain language modelling."""

from typing import Any, NoReturn

from pico_ds.meta.learners.base import Learner, Work


class Autoregressive(Learner):
    """No step on tasks at all: the other control. It is evaluated like the others, at the head where it starts."""

    trains_on_tasks = False

    def add_gradient(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError("an autoregressive run has no step on tasks")

    def work(self, step: int) -> Work:
        return Work(0, 0)
