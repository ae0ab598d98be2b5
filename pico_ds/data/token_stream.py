"""A stream of tokens with document boundaries."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenStream:
    """The concatenated documents of one split.

    Attributes:
        tokens: `[n_tokens]`, memory-mapped; uint16 if the vocabulary fits, else uint32.
        document_ends: `[n_documents]`, end position (exclusive) of each document in `tokens`.
    """

    tokens: npt.NDArray[Any]
    document_ends: npt.NDArray[np.int64]
