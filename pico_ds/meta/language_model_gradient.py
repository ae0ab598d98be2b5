"""The gradient of the language-model loss on one rank."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.model.meta_model import DECODER


def add_language_model_gradient(
    network: FunctionalModel,
    theta: Parameters,
    rows: Int[Tensor, "rows length"],
    total: GradientSum,
    scale: float,
    micro_batch_size: int,
) -> Float[Tensor, ""]:
    """Add `scale` times the gradient of the SUM of the rows' cross-entropies to `total`. Returns the sum in nats."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in theta.items() if name.startswith(DECODER)}
    loss_sum = torch.zeros((), device=rows.device)
    for micro_batch in rows.split(micro_batch_size):
        loss = network.language_model_loss(leaves, micro_batch)
        total.add(leaves, torch.autograd.grad(scale * loss, list(leaves.values())))
        loss_sum += loss.detach()
    return loss_sum
