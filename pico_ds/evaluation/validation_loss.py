"""Token-weighted validation loss."""

from collections.abc import Callable

import numpy as np
import torch

from pico_ds.data.rows import Rows
from pico_ds.engine.distributed import Process
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.progress import track


@torch.no_grad()
def evaluate_validation_loss(
    network: FunctionalModel,
    theta: Parameters,
    rows: Rows,
    n_rows: int,
    micro_batch_size: int,
    process: Process,
    should_continue: Callable[[], bool],
) -> float:
    """Return the mean next-token cross-entropy over the first `n_rows` rows [nats per token]. A collective.

    When `should_continue` returns False, the rank skips its remaining rows.
    """
    n_rows = min(n_rows, rows.n_rows)
    loss_sum = torch.zeros((), dtype=torch.float64, device=process.device)
    local_rows = np.arange(process.rank, n_rows, process.world_size)
    firsts = range(0, len(local_rows), micro_batch_size)
    for first in track(firsts, "computing the validation loss, batches", len(firsts)):
        if not should_continue():
            break
        batch = rows.read(local_rows[first : first + micro_batch_size]).to(process.device)
        loss_sum += network.language_model_loss(theta, batch).double()
    return float(process.sum_over_ranks(loss_sum)) / (n_rows * rows.sequence_length)
