"""Runs scripts/train.py with a delay of $PACE_SECONDS in every step, so that tests can interrupt a step."""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from pico_ds.training.train_step import TrainStep

_compute = TrainStep.compute


def compute_with_delay(self: TrainStep, *arguments: Any, **others: Any) -> Any:
    time.sleep(float(os.environ["PACE_SECONDS"]))
    return _compute(self, *arguments, **others)


TrainStep.compute = compute_with_delay  # type: ignore[method-assign]
sys.argv[0] = str(Path(__file__).resolve().parents[2] / "scripts" / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
