"""Shards from a hub that fails in various ways."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from pico_ds import hub_requests
from pico_ds.config import DataConfig
from pico_ds.data.corpus import open_corpus
from pico_ds.data.shards.shard_corpus import ShardCorpus
from pico_ds.errors import DataError
from tests.fake_dataset_hub import COMMIT, FakeDatasetHub, fake_dataset_hub
from tests.shards import write_shards
from tests.unit.data.shards.test_shards import LENGTH, rows_in, sorted_rows

FILES = [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDatasetHub]:
    monkeypatch.setattr(hub_requests, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # the library also retries failed requests, with its own delays
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    huggingface_hub.close_session()
    write_shards(tmp_path)
    with fake_dataset_hub() as dataset_hub:
        dataset_hub.add(tmp_path)
        monkeypatch.setattr(constants, "ENDPOINT", dataset_hub.url)
        url_template = dataset_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url_template)
        yield dataset_hub
    huggingface_hub.close_session()


def open_hub(tmp_path: Path, **changes: Any) -> ShardCorpus:
    settings: dict[str, Any] = {"source": "hub", "dataset": "lab/tokens", "tokenizer": str(tmp_path / "tokenizer")}
    settings |= {"sequence_length": LENGTH, "cache_dir": str(tmp_path / "cache"), "prefetch_shards": 0}
    corpus = open_corpus(DataConfig.model_validate({**settings, **changes}))
    assert isinstance(corpus, ShardCorpus)
    return corpus


def test_each_shard_is_fetched_once_on_demand(hub: FakeDatasetHub, tmp_path: Path) -> None:
    corpus = open_hub(tmp_path)
    # only the held-out shard is read before training
    assert hub.downloads == [FILES[2]]
    rows = corpus.training_rows(LENGTH, seed=0)
    first = rows.take(0, 5)
    assert len(hub.downloads) == 2
    all_rows = np.concatenate([first, rows.take(5, 65)])
    assert sorted_rows(all_rows) == sorted_rows(rows_in(*(tmp_path / name for name in FILES[:2])))
    # a second process on the node uses the cached shards
    rows_of_second_process = open_hub(tmp_path).training_rows(LENGTH, seed=0).take(0, 70)
    assert np.array_equal(rows_of_second_process, all_rows)
    assert sorted(hub.downloads) == FILES
    assert corpus.identity()["revision"] == COMMIT


@pytest.mark.parametrize("failures", [[500], [503, 500, 502], ["cut"], ["cut", "cut", 500], ["slow"]])
def test_failed_downloads_are_retried(hub: FakeDatasetHub, tmp_path: Path, failures: list[int | str]) -> None:
    corpus = open_hub(tmp_path)
    for name in FILES[:2]:
        hub.failures[name] = list(failures)
    rows = corpus.training_rows(LENGTH, seed=0).take(0, 70)
    assert sorted_rows(rows) == sorted_rows(rows_in(*(tmp_path / name for name in FILES[:2])))
    assert not any(hub.failures.values())


def test_a_failed_prefetch_is_retried_on_demand(
    hub: FakeDatasetHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = open_hub(tmp_path, prefetch_shards=1)
    for name in FILES[:2]:
        hub.failures[name] = [404]
    rows = corpus.training_rows(LENGTH, seed=0)
    with pytest.raises(DataError):
        rows.take(0, 5)
    for background in [*corpus.cache._ahead.values()]:
        background.join()
    assert "could not fetch a shard in advance" in caplog.text
    assert len(rows.take(0, 70)) == 70


def test_hub_errors_are_explained(hub: FakeDatasetHub, tmp_path: Path) -> None:
    message_of_denial = {
        (403, "GatedRepo"): r"data\.dataset: lab/tokens is gated: request access on its page, then set \$HF_TOKEN",
        (401, "RepoNotFound"): r"lab/tokens is not a dataset on the hub, or is private",
        (404, "RepoNotFound"): r"lab/tokens is not a dataset on the hub, or is private",
        (404, "RevisionNotFound"): r"lab/tokens has no revision 'main': check data\.revision",
        (500, "Other"): r"lab/tokens cannot be read from the hub: .*500",
    }
    for denial, message in message_of_denial.items():
        hub.denial = denial
        with pytest.raises(DataError, match=message):
            open_hub(tmp_path)
    hub.denial = None
    with pytest.raises(
        DataError, match=r"data\.dataset_files: no file of lab/tokens matches 'x/\*'; it has README.md, "
    ):
        open_hub(tmp_path, dataset_files="x/*")
    with pytest.raises(DataError, match=r"data\.dataset: a b is not a valid dataset name"):
        open_hub(tmp_path, dataset="a b")


def test_an_unreachable_hub_is_explained(hub: FakeDatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"lab/tokens cannot be read from the hub: .*refused"):
        open_hub(tmp_path)


def test_another_commit_has_another_identity_and_cache(hub: FakeDatasetHub, tmp_path: Path) -> None:
    first = open_hub(tmp_path)
    hub.commit = "1" * 40
    second = open_hub(tmp_path)
    assert first.identity() != second.identity()
    assert first.directory != second.directory
