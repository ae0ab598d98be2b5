"""Local shards: the rows and their order, the size of the cache, and errors for invalid shards."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pico_ds.config import ConfigError, DataConfig, parse_config
from pico_ds.data.corpus import open_corpus
from pico_ds.data.shards.shard_corpus import ShardCorpus
from pico_ds.errors import DataError
from tests.shards import write_shard, write_shards

LENGTH = 32


@pytest.fixture
def shards(tmp_path: Path) -> tuple[list[Path], Path]:
    return write_shards(tmp_path)


def config_of(tokenizer: Path, *paths: Path, **others: Any) -> DataConfig:
    return DataConfig.model_validate(
        {
            "source": "shards",
            "paths": [str(path) for path in paths],
            "tokenizer": str(tokenizer),
            "sequence_length": LENGTH,
            "cache_dir": str(tokenizer.parent / "cache"),
            **others,
        }
    )


def opened(config: DataConfig) -> ShardCorpus:
    corpus = open_corpus(config)
    assert isinstance(corpus, ShardCorpus)
    return corpus


def rows_in(*paths: Path) -> np.ndarray:
    return np.concatenate([np.array(pq.read_table(path)["input_ids"].to_pylist()).reshape(-1, 33) for path in paths])


def sorted_rows(rows: Any) -> list[list[int]]:
    return sorted(np.asarray(rows).tolist())


def test_an_epoch_has_every_training_row_once_and_excludes_the_last_shard(shards: tuple[list[Path], Path]) -> None:
    paths, tokenizer = shards
    corpus = opened(config_of(tokenizer, *paths))
    rows = corpus.training_rows(LENGTH, seed=3)
    epoch, following = rows.take(0, 70), rows.take(70, 70)
    assert sorted_rows(epoch) == sorted_rows(following) == sorted_rows(rows_in(*paths[:2]))
    assert not torch.equal(epoch, following)
    assert not torch.equal(epoch, corpus.training_rows(LENGTH, seed=4).take(0, 70))
    held_out = corpus.validation_rows(LENGTH)
    assert np.array_equal(held_out.read(np.arange(held_out.n_rows)), rows_in(paths[2]))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_a_position_has_the_same_row_for_any_world_size(shards: tuple[list[Path], Path], world_size: int) -> None:
    """Read in steps of 7 rows that cross the bounds of shards and epochs."""
    paths, tokenizer = shards
    corpus = opened(config_of(tokenizer, *paths))
    whole = corpus.training_rows(LENGTH, seed=0).take(0, 175)
    ranks = [corpus.training_rows(LENGTH, seed=0) for _ in range(world_size)]
    for first in range(0, 175, 7):
        for rank, rows in enumerate(ranks):
            assert torch.equal(rows.take(first, 7, rank, world_size), whole[first : first + 7][rank::world_size])


def test_resuming_in_a_shard_does_not_open_earlier_shards(shards: tuple[list[Path], Path]) -> None:
    paths, tokenizer = shards
    corpus = opened(config_of(tokenizer, *paths))
    whole = corpus.training_rows(LENGTH, seed=0)
    expected = whole.take(0, 300)
    for position in (0, 1, 39, 40, 69, 70, 71, 139, 140, 200):
        state = whole.state_dict(position)
        assert state["first_row"] <= position
        resumed = corpus.training_rows(LENGTH, seed=0)
        resumed.load_state_dict(state)
        assert torch.equal(resumed.take(position, 9, 1, 2), expected[position : position + 9][1::2])
        # the shard of the position, and the next one if the rows reach it
        assert len(resumed._starts) <= 3
    # a position before the checkpoint's shard is found from the beginning
    resumed.load_state_dict(whole.state_dict(200))
    assert torch.equal(resumed.take(5, 4), expected[5:9])


def test_the_state_of_a_position_ignores_rows_read_in_advance(shards: tuple[list[Path], Path]) -> None:
    paths, tokenizer = shards
    rows = opened(config_of(tokenizer, *paths)).training_rows(LENGTH, seed=0)
    rows.take(60, 40)
    assert rows.state_dict(60)["first_row"] in (30, 40)
    assert rows.state_dict(95)["turn"] == 2


def test_long_rows_are_split_into_rows_that_share_a_token(tmp_path: Path) -> None:
    paths, tokenizer = write_shards(tmp_path, width=65)
    corpus = opened(config_of(tokenizer, *paths))
    read = corpus.training_rows(LENGTH, seed=0).take(0, 140).numpy()
    long = np.concatenate([np.array(pq.read_table(path)["input_ids"].to_pylist()) for path in paths[:2]])
    assert sorted_rows(read) == sorted_rows(np.concatenate([long[:, :33], long[:, 32:]]))


@pytest.mark.parametrize("kind", ["int16", "uint16", "int32", "int64", "large_list", "fixed_size_list"])
def test_every_list_of_integers_type_is_read(tmp_path: Path, kind: str) -> None:
    paths, tokenizer = write_shards(tmp_path)
    expected = rows_in(paths[0])
    types = {"large_list": pa.large_list(pa.int64()), "fixed_size_list": pa.list_(pa.int32(), 33)}
    array = pa.array(expected.tolist(), type=types.get(kind) or pa.list_(getattr(pa, kind)()))
    pq.write_table(pa.table({"input_ids": array}), paths[0], row_group_size=7)
    rows = opened(config_of(tokenizer, *paths)).cache.open(0).rows
    assert np.array_equal(rows, expected)
    assert rows.dtype == np.uint16


def test_empty_shards_are_skipped(tmp_path: Path) -> None:
    paths, tokenizer = write_shards(tmp_path, n_shards=5)
    for empty in (paths[1], paths[3]):
        write_shard(empty, [])
    corpus = opened(config_of(tokenizer, *paths))
    assert sorted_rows(corpus.training_rows(LENGTH, seed=0).take(0, 75)) == sorted_rows(rows_in(paths[0], paths[2]))
    assert {len(corpus.training_pool(number, 100, seed=0)) for number in range(8)} <= {40, 35}
    for empty in (paths[0], paths[2]):
        write_shard(empty, [])
    with pytest.raises(DataError, match="no training shard has any rows"):
        opened(config_of(tokenizer, *paths)).training_rows(LENGTH, seed=0).take(0, 1)


Damage = Callable[[np.ndarray], Any]


def changed(row: int, position: int, token: int | None) -> Damage:
    def damage(rows: np.ndarray) -> Any:
        changed_rows = rows.tolist()
        changed_rows[row][position] = token
        return changed_rows

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda rows: [*rows[:5].tolist(), rows[5, :20].tolist()],
            r"0-of-00003\.parquet, row 5: 20 tokens, but .* 33",
        ),
        (lambda rows: [*rows[:5].tolist(), None], r"row 5: 0 tokens"),
        (lambda rows: rows[:, :30], r"row 0: 30 tokens; rows must have data\.sequence_length \+ 1 = 33"),
        (lambda _: [[]], r"row 0: 0 tokens"),
        (changed(17, 4, 9999), r"row 17: token 9,999 at position 4, but the tokenizer has 511"),
        (changed(3, 32, -1), r"row 3: token -1 at position 32"),
        (changed(2, 1, None), r"row 2: no token at position 1"),
    ],
)
def test_an_error_names_the_invalid_row(shards: tuple[list[Path], Path], damage: Damage, message: str) -> None:
    paths, tokenizer = shards
    write_shard(paths[0], damage(rows_in(paths[0])))
    # `full` finds the row before training; otherwise opening the shard does
    with pytest.raises(DataError, match=message):
        open_corpus(config_of(tokenizer, *paths, validate="full"))
    corpus = opened(config_of(tokenizer, *paths))
    with pytest.raises(DataError, match=message):
        corpus.training_rows(LENGTH, seed=0).take(0, 70)


def test_files_that_are_not_token_shards_fail_before_training(shards: tuple[list[Path], Path]) -> None:
    paths, tokenizer = shards
    pq.write_table(pa.table({"text": ["a"]}), paths[0])
    with pytest.raises(DataError, match=r"has the columns text, but token shards have 'input_ids'"):
        open_corpus(config_of(tokenizer, *paths))
    pq.write_table(pa.table({"input_ids": ["a"]}), paths[0])
    with pytest.raises(DataError, match="holds string, expected lists of integers"):
        open_corpus(config_of(tokenizer, *paths))
    paths[0].write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match=r"0-of-00003\.parquet cannot be read as parquet"):
        open_corpus(config_of(tokenizer, *paths))
    with pytest.raises(DataError, match=r"ends in '\.jsonl'; token shards"):
        open_corpus(config_of(tokenizer, tokenizer.parent / "corpus.jsonl"))
    with pytest.raises(DataError, match=r"data\.validation_shards: got 1, but there are only 1 shards"):
        open_corpus(config_of(tokenizer, paths[1]))


def test_a_shard_that_cannot_be_opened_is_a_read_error(shards: tuple[list[Path], Path]) -> None:
    """The error must not blame a full cache directory."""
    paths, tokenizer = shards
    corpus = opened(config_of(tokenizer, *paths, validate="off"))
    for path in paths:
        path.unlink()
        path.mkdir()
    with pytest.raises(DataError, match=r"00003\.parquet cannot be read: .*check the path"):
        corpus.training_rows(LENGTH, seed=0).take(0, 70)


def test_no_shard_is_read_without_validation(shards: tuple[list[Path], Path]) -> None:
    paths, tokenizer = shards
    pq.write_table(pa.table({"text": ["a"]}), paths[0])
    corpus = opened(config_of(tokenizer, *paths, validate="off"))
    assert not [*corpus.directory.glob("*.npy")]


def test_validated_shards_are_not_validated_again(
    shards: tuple[list[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    paths, tokenizer = shards
    config = config_of(tokenizer, *paths, validate="full")
    with caplog.at_level(logging.INFO, "pico_ds"):
        corpus = opened(config)
        assert "full: 3 shards, 105 rows" in caplog.text
        caplog.clear()
        for file in corpus.directory.glob("*.npy"):
            file.unlink()
        again = opened(config)
    assert "validate" not in caplog.text
    assert again.directory == corpus.directory
    assert not [*corpus.directory.glob("*.npy")]


def test_the_cache_stays_within_its_size_limit(tmp_path: Path) -> None:
    """Read six shards of 40 rows (2,640 bytes and a header each) with a limit of two and a half shards."""
    paths, tokenizer = write_shards(tmp_path, n_shards=7, rows_per_shard=[40])
    limit = 2.5 * (40 * 33 * 2 + 128)
    corpus = opened(config_of(tokenizer, *paths, cache_gib=limit / 2**30, prefetch_shards=1))
    rows = corpus.training_rows(LENGTH, seed=0)
    read = []
    for first in range(0, 480, 10):
        read.append(rows.take(first, 10))
        for background in [*corpus.cache._ahead.values()]:
            background.join()
        assert sum(file.stat().st_size for file in corpus.directory.glob("*.npy")) <= limit
    all_rows = sorted_rows(rows_in(*paths[:6]))
    assert sorted_rows(torch.cat(read[:24])) == sorted_rows(torch.cat(read[24:])) == all_rows
    assert not [*corpus.directory.glob(".0*")]


def test_a_shard_that_another_process_removed_is_restored(shards: tuple[list[Path], Path]) -> None:
    paths, tokenizer = shards
    corpus = opened(config_of(tokenizer, *paths))
    first = corpus.cache.open(0)
    kept = np.array(first.rows)
    (corpus.directory / "00000.npy").unlink()
    # an open shard stays readable
    assert np.array_equal(first.rows, kept)
    assert np.array_equal(corpus.cache.open(0).rows, kept)


def test_equal_shards_in_another_directory_have_the_same_identity(tmp_path: Path) -> None:
    corpora = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        paths, tokenizer = write_shards(tmp_path / name)
        corpora.append(opened(config_of(tokenizer, *paths)).identity())
    assert corpora[0] == corpora[1]
    write_shard(paths[0], rows_in(paths[0])[:-1])
    assert opened(config_of(tokenizer, *paths)).identity() != corpora[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{source: shards, tokenizer: a}", r"data\.paths: got an empty list; data\.source: shards"),
        ("{source: shards, paths: [a]}", r"data\.tokenizer: got null; data\.source: shards"),
        ("{source: hub, tokenizer: a}", r"data\.dataset: got null"),
        ("{source: hub, dataset: a/b, tokenizer: a, paths: [c]}", r"data\.paths: got \['c'\] with data\.source: hub"),
        ("{source: files, paths: [a], dataset: a/b}", r"data\.dataset: got 'a/b' with data\.source: files"),
    ],
)
def test_inconsistent_data_settings_fail(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"data: {text}")
