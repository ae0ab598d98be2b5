import numpy as np
import pytest
import torch

from pico_ds.data.keyed_random import digest64, keyed_rng, keyed_uniform
from pico_ds.data.rows import ShuffledRows, TokenRows
from pico_ds.data.token_stream import TokenStream
from pico_ds.errors import DataError


def make_rows(n_tokens: int = 101, length: int = 10) -> TokenRows:
    return TokenRows(TokenStream(np.arange(n_tokens, dtype=np.uint16), np.array([n_tokens])), length)


def test_every_token_except_the_first_is_predicted_exactly_once() -> None:
    rows = make_rows()
    assert rows.n_rows == 10
    read = rows.read(np.arange(10))
    assert read.shape == (10, 11)
    assert read[:, 1:].flatten().tolist() == list(range(1, 101))
    assert torch.equal(read[1:, 0], read[:-1, -1])


def test_reading_no_rows_returns_an_empty_tensor() -> None:
    assert make_rows().read(np.arange(0)).shape == (0, 11)


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    shuffled = ShuffledRows(make_rows(), seed=3)
    first, second = shuffled.indices(0, 10), shuffled.indices(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    # a batch may span epochs
    assert shuffled.indices(7, 6).tolist() == [*first[7:], *second[:3]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_rows_of_all_ranks_do_not_depend_on_the_world_size(world_size: int) -> None:
    shuffled = ShuffledRows(make_rows(), seed=0)
    whole = shuffled.indices(5, 7)
    shares = [shuffled.indices(5, 7, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares)) == sorted(whole)
    for rank, share in enumerate(shares):
        assert share.tolist() == whole[rank::world_size].tolist()


def test_a_stream_shorter_than_a_row_fails() -> None:
    with pytest.raises(DataError, match=r"data\.sequence_length: the split has 5 tokens"):
        make_rows(5)


def test_random_values_depend_only_on_the_key() -> None:
    assert keyed_rng("a", 1).random(3).tolist() == keyed_rng("a", 1).random(3).tolist()
    assert keyed_rng("a", 1).random() != keyed_rng("a", 2).random()
    assert digest64("ab", "c") != digest64("a", "bc")
    assert digest64(1) != digest64("1")
    # must stay constant, because a change would alter every run
    assert digest64("step kind", 0, 7) == 8372175243280533686
    values = [keyed_uniform("u", i) for i in range(2000)]
    assert 0.47 < np.mean(values) < 0.53
    assert min(values) >= 0
    assert max(values) < 1
