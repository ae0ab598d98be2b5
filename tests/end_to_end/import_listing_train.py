"""Runs scripts/train.py and lists its imported modules after the first step and at the end.

The lists are written to `first_step.txt` and `end.txt` in $IMPORTS_DIRECTORY.
"""

import atexit
import os
import runpy
import sys
from pathlib import Path
from typing import Any

DIRECTORY = Path(os.environ["IMPORTS_DIRECTORY"])


def write_modules(name: str) -> None:
    (DIRECTORY / name).write_text("\n".join(sorted(sys.modules)))


class FirstStepHook:
    """Wraps `TrainStep.compute` as soon as the trainer is imported. The hook itself imports nothing early."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pico_ds.training.trainer":
            from pico_ds.training.train_step import TrainStep

            compute = TrainStep.compute

            def compute_and_list(*arguments: Any, **others: Any) -> Any:
                result = compute(*arguments, **others)
                if not (DIRECTORY / "first_step.txt").exists():
                    write_modules("first_step.txt")
                return result

            TrainStep.compute = compute_and_list  # type: ignore[method-assign]


sys.meta_path.insert(0, FirstStepHook())  # type: ignore[arg-type]
atexit.register(write_modules, "end.txt")
sys.argv[0] = str(Path(__file__).resolve().parents[2] / "scripts" / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
