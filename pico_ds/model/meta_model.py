"""Everything that the outer loop trains: the decoder, and the weights of a meta-learned head."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from pico_ds.config import MetaConfig, ModelConfig
from pico_ds.model.attention import Attend, causal_attention
from pico_ds.model.decoder import PicoDecoder, initialize_weights
from pico_ds.model.recompute import Recompute

#: prefix of the decoder's parameters in a MetaModel
DECODER = "decoder."
#: the output projection, which no task loss depends on
OUTPUT_PROJECTION = "decoder.de_embedding_proj.weight"
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"
_CPU = torch.device("cpu")


def is_of_the_body(name: str) -> bool:
    """Whether the states of the last block depend on a parameter, and with them every task loss."""
    return name.startswith(DECODER) and name != OUTPUT_PROJECTION


class MetaModel(nn.Module):
    """A decoder, with a linear head of `n_way` classes where the head is meta-learned."""

    def __init__(
        self,
        shape: ModelConfig,
        vocab_size: int,
        head_classes: int | None,
        attend: Attend = causal_attention,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self._attend, self._recompute = attend, recompute
        self.decoder = PicoDecoder(shape, vocab_size)
        if head_classes is not None:
            self.head = nn.Linear(shape.d_model, head_classes)

    def with_attention(self, attend: Attend) -> MetaModel:
        """The same module, parameters and all, with another attention."""
        other = copy.copy(self)
        other._attend = attend
        return other

    def forward(self, input_ids: Tensor) -> Tensor:
        """Hidden states `[batch, seq, d_model]` of `[batch, seq]` token ids."""
        return self.decoder.hidden(input_ids, attend=self._attend, recompute=self._recompute)


def build_meta_model(
    model: ModelConfig, meta: MetaConfig, n_way: int, vocab_size: int, seed: int, device: torch.device = _CPU
) -> MetaModel:
    """A freshly initialised model; the weights depend on the seed and the kind of device alone."""
    # without the initialisation of torch's own modules, which takes as long
    module = build_twin(model, meta, n_way, vocab_size).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    initialize_weights(module.decoder, model.initializer_std, generator)
    if meta.head == "linear":
        with torch.no_grad():
            module.head.weight.normal_(0.0, 1 / math.sqrt(model.d_model), generator=generator)
            module.head.bias.zero_()
    return module


def build_twin(
    model: ModelConfig,
    meta: MetaConfig,
    n_way: int,
    vocab_size: int,
    attend: Attend = causal_attention,
    recompute: Recompute = "none",
) -> MetaModel:
    """The same module without storage, for `torch.func.functional_call`: DeepSpeed's hooks never see it."""
    with torch.device("meta"):
        return MetaModel(model, vocab_size, n_way if meta.head == "linear" else None, attend, recompute)
