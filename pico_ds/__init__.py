"""First-order MAML pre-training of Pico language models under DeepSpeed ZeRO.

The names in `__all__` are the public interface. They are imported on first use, so that `import pico_ds` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pico_ds.version import __version__

if TYPE_CHECKING:
    from pico_ds.api import (
        Adaptation,
        Evaluation,
        Run,
        adapt,
        build_model,
        build_tasks,
        load_run,
        make_learner,
        open_corpus,
        show_task,
        train,
    )
    from pico_ds.config import RunConfig, load_config

_MODULES = {
    **dict.fromkeys(("RunConfig", "load_config"), "pico_ds.config"),
    **dict.fromkeys(
        (
            *("Adaptation", "Evaluation", "Run", "adapt", "build_model", "build_tasks", "load_run", "make_learner"),
            *("open_corpus", "show_task", "train"),
        ),
        "pico_ds.api",
    ),
}
__all__ = [
    "Adaptation",
    "Evaluation",
    "Run",
    "RunConfig",
    "__version__",
    "adapt",
    "build_model",
    "build_tasks",
    "load_config",
    "load_run",
    "make_learner",
    "open_corpus",
    "show_task",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pico_ds' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
