"""Rows of a sharded corpus, addressed by their global position."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from pico_ds.data.keyed_random import keyed_rng
from pico_ds.data.shards.shard_cache import Shard, ShardCache
from pico_ds.errors import DataError


class ShardRows:
    """Rows of `sequence_length + 1` tokens from several shards, in order.

    A longer row of a shard is split into several rows. Neighboring rows share one token, so that every token is
    predicted once.
    """

    def __init__(self, shards: Sequence[Shard], sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self._shards = [shard.rows for shard in shards]
        self._per_row = [(rows.shape[1] - 1) // sequence_length for rows in self._shards]
        counts = [len(rows) * parts for rows, parts in zip(self._shards, self._per_row, strict=True)]
        self._ends = np.cumsum(counts)
        self.n_rows = int(self._ends[-1])

    def read(self, indices: npt.NDArray[np.int64]) -> Int[Tensor, "rows length"]:
        """Return the rows at `indices`, in that order. Empty `indices` give a tensor without rows."""
        found = np.empty((len(indices), self.sequence_length + 1), dtype=np.int64)
        owners = np.searchsorted(self._ends, indices, side="right")
        columns = np.arange(self.sequence_length + 1)
        for owner in np.unique(owners):
            in_shard = owners == owner
            first = self._ends[owner - 1] if owner else 0
            lines, parts = np.divmod(indices[in_shard] - first, self._per_row[owner])
            found[in_shard] = self._shards[owner][lines[:, None], parts[:, None] * self.sequence_length + columns]
        return torch.from_numpy(found)


class ShardedRows:
    """An endless sequence of rows from shards in random order.

    The order of the shards is keyed by (seed, epoch). The order of the rows in a shard is keyed by (seed, epoch, place
    of the shard in the epoch).

    The number of rows of a shard is known only after the shard is fetched. The first position of each shard is
    therefore determined during training, and a checkpoint records the first position of the current shard.
    """

    def __init__(self, cache: ShardCache, shards: Sequence[int], sequence_length: int, seed: int, ahead: int) -> None:
        """
        Args:
            shards: numbers of the training shards.
            ahead: number of shards that are fetched before they are needed.
        """
        self.sequence_length = sequence_length
        self._cache, self._shards, self._seed, self._ahead = cache, list(shards), seed, ahead
        # a turn is a place in the endless sequence of shards; _starts holds the first row positions from _first_turn on
        self._first_turn, self._starts = 0, [0]
        self._open: dict[int, _Turn] = {}
        # a background thread reads the rows of the next step, and a snapshot may read at the same time
        self._lock = Lock()

    def take(self, first: int, count: int, rank: int = 0, world_size: int = 1) -> Int[Tensor, "rows length"]:
        """Return the rows at the global positions `first`, ..., `first + count - 1` that belong to `rank`.

        Raises:
            DataError: a shard cannot be fetched or used, or no shard has rows.
        """
        positions = np.arange(first + rank, first + count, world_size)
        found = torch.empty(len(positions), self.sequence_length + 1, dtype=torch.int64)
        done = 0
        with self._lock:
            if first < self._starts[0]:
                # the position is before the checkpoint's shard, so all starts must be determined again
                self._first_turn, self._starts = 0, [0]
            while done < len(positions):
                number = self._find(int(positions[done]))
                begin, end = self._starts[number : number + 2]
                stop = int(np.searchsorted(positions, end))
                found[done:stop] = self._turn(self._first_turn + number).read(positions[done:stop] - begin)
                done = stop
        return found

    def state_dict(self, position: int) -> dict[str, int]:
        """Return the turn that contains a global position, and the first position of the turn."""
        number = bisect_right(self._starts, position) - 1
        return {"turn": self._first_turn + number, "first_row": self._starts[number]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the turn that a checkpoint recorded."""
        self._first_turn, self._starts = int(state["turn"]), [int(state["first_row"])]

    def _find(self, position: int) -> int:
        """Return the index in `_starts` of the turn that contains a position.

        Opens each turn up to this one whose number of rows is not known yet.

        Raises:
            DataError: a shard cannot be fetched or used, or no shard has rows.
        """
        empty = 0
        while self._starts[-1] <= position:
            n_rows = self._turn(self._first_turn + len(self._starts) - 1).rows.n_rows
            self._starts.append(self._starts[-1] + n_rows)
            empty = 0 if n_rows else empty + 1
            if empty == len(self._shards):
                raise DataError("no training shard has any rows; add shards with rows")
        return bisect_right(self._starts, position) - 1

    def _turn(self, turn: int) -> "_Turn":
        if turn not in self._open:
            following = [self._number(turn + k) for k in range(1, self._ahead + 1)]
            rows = ShardRows([self._cache.open(self._number(turn), following)], self.sequence_length)
            order = keyed_rng("row order", self._seed, *divmod(turn, len(self._shards))).permutation(rows.n_rows)
            # keep the previous turn open, because a step may need rows of both
            self._open = {turn: _Turn(rows, order)} | {k: opened for k, opened in self._open.items() if k == turn - 1}
        return self._open[turn]

    def _number(self, turn: int) -> int:
        """Return the number of the shard of a turn."""
        epoch, place = divmod(turn, len(self._shards))
        return self._shards[int(keyed_rng("shard order", self._seed, epoch).permutation(len(self._shards))[place])]


@dataclass(frozen=True)
class _Turn:
    """An open shard and the order in which its rows are read."""

    rows: ShardRows
    order: npt.NDArray[np.int64]

    def read(self, places: npt.NDArray[np.int64]) -> Int[Tensor, "rows length"]:
        return self.rows.read(self.order[places])
