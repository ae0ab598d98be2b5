"""Rows for autoregressive training, addressed by their global position."""

from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from pico_ds.data.keyed_random import keyed_rng
from pico_ds.data.token_stream import TokenStream
from pico_ds.errors import DataError


@runtime_checkable
class Rows(Protocol):
    """Numbered rows of `sequence_length + 1` tokens each."""

    sequence_length: int
    n_rows: int

    def read(self, indices: npt.NDArray[np.int64]) -> Int[Tensor, "rows length"]:
        """Return the rows at `indices`, in that order. Empty `indices` give a tensor without rows."""


@runtime_checkable
class TrainingRows(Protocol):
    """An endless sequence of rows."""

    sequence_length: int

    def take(self, first: int, count: int, rank: int = 0, world_size: int = 1) -> Int[Tensor, "rows length"]:
        """Return the rows at the global positions `first`, ..., `first + count - 1` that belong to `rank`.

        Rank r takes every world_size-th position, starting at `first + r`. The rows of all ranks together therefore do
        not depend on the world size.
        """

    def state_dict(self, position: int) -> dict[str, int]:
        """Return a state with which a resumed run finds a global position without reading from the beginning."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""


class TokenRows:
    """Rows of a token stream. Neighboring rows share one token, so that every token is predicted once."""

    def __init__(self, stream: TokenStream, sequence_length: int) -> None:
        """
        Raises:
            DataError: the stream is shorter than one row.
        """
        self.tokens = stream.tokens
        self.sequence_length = sequence_length
        self.n_rows = (len(self.tokens) - 1) // sequence_length
        if self.n_rows < 1:
            raise DataError(
                f"data.sequence_length: the split has {len(self.tokens)} tokens, fewer than one row of "
                f"{sequence_length} + 1; lower it or use more documents"
            )

    def read(self, indices: npt.NDArray[np.int64]) -> Int[Tensor, "rows length"]:
        """Return the rows at `indices`, in that order. Empty `indices` give a tensor without rows."""
        columns = np.arange(self.sequence_length + 1)
        gathered = self.tokens[indices[:, None] * self.sequence_length + columns]
        return torch.from_numpy(gathered.astype(np.int64))


class ShuffledRows:
    """An endless sequence of rows. The order in each epoch is a permutation keyed by (seed, epoch)."""

    def __init__(self, rows: Rows, seed: int) -> None:
        self.sequence_length = rows.sequence_length
        self._rows, self._seed = rows, seed
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        return keyed_rng("row order", self._seed, epoch).permutation(self._rows.n_rows)

    def indices(self, first: int, count: int, rank: int = 0, world_size: int = 1) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows that `take` returns for the same arguments."""
        epochs, places = np.divmod(np.arange(first + rank, first + count, world_size), self._rows.n_rows)
        chosen = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            chosen[in_epoch] = self._order(int(epoch))[places[in_epoch]]
        return chosen

    def take(self, first: int, count: int, rank: int = 0, world_size: int = 1) -> Int[Tensor, "rows length"]:
        """Return the rows at the global positions `first`, ..., `first + count - 1` that belong to `rank`."""
        return self._rows.read(self.indices(first, count, rank, world_size))

    def state_dict(self, position: int) -> dict[str, int]:
        """Return an empty state, because a position is found by arithmetic."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, because the state is empty."""
