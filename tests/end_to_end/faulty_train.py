"""scripts/train.py with faults: FAULT="<kind> <rank> <outer step>", several joined by a comma; each comes once.

Kinds: die (SIGKILL), hang, hang_locked (in native code that holds the interpreter lock), raise.
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


def compute_with_fault(self: TrainStep, kind: Any, theta: Any, step: int, *rest: Any, **others: Any) -> Any:
    for fault in os.environ["FAULT"].split(","):
        name, *when = fault.split()
        mark = Path(os.environ["FAULT_MARKS"]) / fault
        if when == [os.environ["RANK"], str(step)] and not mark.exists():
            mark.touch()
            fail(name)
    return _compute(self, kind, theta, step, *rest, **others)


def fail(name: str) -> None:
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "hang":
        time.sleep(600)
    elif name == "hang_locked":
        # the SIGTERM of a launcher would end the sleep, and with it the hang
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ctypes.PyDLL(None).sleep(600)
    else:
        raise OSError("the disk of the data is gone")


TrainStep.compute = compute_with_fault  # type: ignore[method-assign]
sys.argv[0] = str(REPOSITORY / "scripts" / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
