"""The module that the outer loop trains: the decoder, and any parameters of the head and the learner."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from pico_ds.model.attention import Attend, causal_attention
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.recompute import Recompute

#: prefix of the decoder's parameters in a MetaModel
DECODER = "decoder."
#: the output projection, on which no task loss depends
OUTPUT_PROJECTION = "decoder.de_embedding_proj.weight"
#: prefixes of the parameters of the head and the learner
HEAD, LEARNER = "head.", "learner."


def is_body_parameter(name: str) -> bool:
    """Return whether the hidden states of the last block, and therefore the task losses, depend on a parameter."""
    return name.startswith(DECODER) and name != OUTPUT_PROJECTION


class MetaModel(nn.Module):
    """A decoder, and the meta-parameters of the head and the learner if they have any."""

    def __init__(
        self,
        decoder: PicoDecoder,
        head: nn.Module | None = None,
        learner: nn.Module | None = None,
        attend: Attend = causal_attention,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self._attend, self._recompute = attend, recompute
        self.decoder = decoder
        if head is not None:
            self.head = head
        if learner is not None:
            self.learner = learner

    def with_attention(self, attend: Attend) -> MetaModel:
        """Return a shallow copy that shares all parameters but uses another attention kernel."""
        other = copy.copy(self)
        other._attend = attend
        return other

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return hidden states `[batch, seq, d_model]` for token ids `[batch, seq]`."""
        return self.decoder.hidden(input_ids, attend=self._attend, recompute=self._recompute)
