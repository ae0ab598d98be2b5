"""Whether starting a process compiled DeepSpeed's shared-memory op."""

import json
import sys
from pathlib import Path

import deepspeed

from pico_ds.engine.distributed import start_process, stop_process


def main() -> None:
    start_process()
    Path(sys.argv[1]).write_text(json.dumps({"compiled": deepspeed.comm.comm.cdb.shm_comm_op is not None}))
    stop_process()


if __name__ == "__main__":
    main()
