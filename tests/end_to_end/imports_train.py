"""scripts/train.py, which lists the modules that it has imported: at its first step, and at its end.

The lists go to $IMPORTS_DIRECTORY as `first_step.txt` and `end.txt`.
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


class FirstStep:
    """Wraps `TrainStep.compute` as soon as its module is imported, and imports nothing itself."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pico_ds.training.trainer":
            from pico_ds.training.train_step import TrainStep

            compute = TrainStep.compute

            def compute_and_list(*arguments: Any, **others: Any) -> Any:
                found = compute(*arguments, **others)
                if not (DIRECTORY / "first_step.txt").exists():
                    write_modules("first_step.txt")
                return found

            TrainStep.compute = compute_and_list  # type: ignore[method-assign]


sys.meta_path.insert(0, FirstStep())  # type: ignore[arg-type]
atexit.register(write_modules, "end.txt")
sys.argv[0] = str(Path(__file__).resolve().parents[2] / "scripts" / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
