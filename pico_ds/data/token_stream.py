"""Tokens in order, with the bounds of documents."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenStream:
    """The documents of one split, one after another.

    Attributes:
        tokens: `[n_tokens]`, memory-mapped, of the smallest unsigned type that holds the vocabulary.
        document_ends: `[n_documents]`, where each document ends (exclusive).
    """

    tokens: npt.NDArray[Any]
    document_ends: npt.NDArray[np.int64]
