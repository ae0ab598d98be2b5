"""Runs scripts/train.py with simulated faults.

$FAULT is "<kind> <rank> <outer step>", or several of these separated by commas. Files in $FAULT_MARKS record faults,
so that it happens only once if the job restarts. Kinds: die (SIGKILL), hang, hang_locked (in native code that holds the
interpreter lock) and raise.
"""

import ctypes
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pico_ds.training.train_step import TrainStep

REPOSITORY = Path(__file__).resolve().parents[2]
_compute = TrainStep.compute


def compute_with_fault(self: TrainStep, step_kind: Any, theta: Any, step: int, *rest: Any, **others: Any) -> Any:
    for fault in os.environ["FAULT"].split(","):
        kind, *when = fault.split()
        mark = Path(os.environ["FAULT_MARKS"]) / fault
        if when == [os.environ["RANK"], str(step)] and not mark.exists():
            mark.touch()
            fail(kind)
    return _compute(self, step_kind, theta, step, *rest, **others)


def fail(kind: str) -> None:
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        time.sleep(600)
    elif kind == "hang_locked":
        # otherwise a SIGTERM from the launcher would end the sleep
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ctypes.PyDLL(None).sleep(600)
    else:
        raise OSError("the disk of the data is gone")


TrainStep.compute = compute_with_fault  # type: ignore[method-assign]
sys.argv[0] = str(REPOSITORY / "scripts" / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
