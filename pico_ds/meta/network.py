"""Losses and features as pure functions of the parameters."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from pico_ds.config import Readout
from pico_ds.model.meta_model import OUTPUT_PROJECTION, MetaModel
from pico_ds.tasks.episode import Contexts

#: full parameters by name, in fp32 or in the compute type
Parameters = Mapping[str, Tensor]


class Network:
    """A model whose parameters are given at every call.

    What is not in `compute_dtype` yet is cast inside.
    """

    def __init__(self, twin: MetaModel, compute_dtype: torch.dtype, feature_squared_norm: float) -> None:
        self.twin = twin
        self.compute_dtype = compute_dtype
        self.feature_length = feature_squared_norm**0.5

    def hidden(self, parameters: Parameters, input_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq width"]:
        """States of the decoder's last block, in the compute type."""
        cast = {name: weight.to(self.compute_dtype) for name, weight in parameters.items()}
        return functional_call(self.twin, cast, (input_ids,))

    def features(self, parameters: Parameters, contexts: Contexts, readout: Readout) -> Float[Tensor, "contexts width"]:
        """Features of each context, fp32, scaled to a fixed length."""
        hidden = self.hidden(parameters, contexts.input_ids).float()
        if readout == "mean":
            real = torch.arange(hidden.shape[1], device=hidden.device) < contexts.lengths[:, None]
            pooled = (hidden * real[..., None]).sum(1) / contexts.lengths[:, None]
        else:
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), contexts.readout_index]
        return self.feature_length * F.normalize(pooled, dim=-1)

    def language_model_loss(self, parameters: Parameters, rows: Int[Tensor, "rows length"]) -> Float[Tensor, ""]:
        """SUM of the next-token cross-entropies of the rows, in nats, fp32."""
        hidden = self.hidden(parameters, rows[:, :-1])
        logits = F.linear(hidden, parameters[OUTPUT_PROJECTION].to(self.compute_dtype))
        return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum")
