"""Everything that the outer loop trains: the decoder, and what the head and the learner add to it."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from pico_ds.model.attention import Attend, causal_attention
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.recompute import Recompute

#: prefix of the decoder's parameters in a MetaModel
DECODER = "decoder."
#: the output projection, which no task loss depends on
OUTPUT_PROJECTION = "decoder.de_embedding_proj.weight"
#: prefixes of what the head and the learner train beside it
HEAD, LEARNER = "head.", "learner."


def is_of_the_body(name: str) -> bool:
    """Whether the states of the last block depend on a parameter, and with them every task loss."""
    return name.startswith(DECODER) and name != OUTPUT_PROJECTION


class MetaModel(nn.Module):
    """A decoder, and the meta-parameters of a head and of a learner where these have any."""

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
        """The same module, parameters and all, with another attention."""
        other = copy.copy(self)
        other._attend = attend
        return other

    def forward(self, input_ids: Tensor) -> Tensor:
        """Hidden states `[batch, seq, d_model]` of `[batch, seq]` token ids."""
        return self.decoder.hidden(input_ids, attend=self._attend, recompute=self._recompute)
