"""Tells whether DeepSpeed compiled its shared-memory op."""

import deepspeed

from pico_ds.engine.distributed import Process


def is_compiled(process: Process) -> bool:
    return deepspeed.comm.comm.cdb.shm_comm_op is not None
