"""Runs scripts/train.py with a delay of $SLOW_SECONDS before the snapshot of step 2 is written."""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from pico_ds.training.callbacks import snapshots

REPOSITORY = Path(__file__).resolve().parents[2]
_write = snapshots.write_snapshot


def write_slowly(directory: Path, snapshot: Any, tokenizer: Any) -> None:
    if snapshot.step == 2:
        time.sleep(float(os.environ["SLOW_SECONDS"]))
    _write(directory, snapshot, tokenizer)


snapshots.write_snapshot = write_slowly
sys.argv[0] = str(REPOSITORY / "scripts" / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
