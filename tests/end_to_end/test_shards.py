"""Runs on shards of a hub: fetched once for all ranks, resumed in the middle of a shard, the same tasks everywhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_dataset_hub import FakeDatasetHub, fake_dataset_hub
from tests.launching import warm
from tests.run_results import TINY, deterministic_metrics_of
from tests.shards import write_shards

TRAIN = "scripts/train.py"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeDatasetHub, Path]]:
    directory = tmp_path_factory.mktemp("shards")
    # four shards of which three are trained on: 24 rows each, five AR steps less one row
    write_shards(directory, n_shards=4, rows_per_shard=[3, 3, 3, 40], width=8 * 32 + 1)
    with fake_dataset_hub() as found:
        found.add(directory)
        yield found, directory


def settings(directory: Path, name: str, *others: str) -> list[str]:
    data = ["data.source=hub", "data.dataset=lab/tokens", f"data.tokenizer={directory}/tokenizer", "data.paths=[]"]
    data += [f"data.cache_dir={directory}/cache-{name}", "smlmt.pool_steps=3", "smlmt.min_word_freq=4"]
    where = [f"checkpointing.runs_dir={directory}/runs", f"checkpointing.run_name={name}"]
    return ["--config", TINY, *data, *where, "training.max_steps=12", "training.lr_schedule=constant", *others]


def at(hub: FakeDatasetHub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def test_run_resumes_mid_shard_at_another_world_size(hub: tuple[FakeDatasetHub, Path]) -> None:
    server, directory = hub
    warm.torchrun(TRAIN, *settings(directory, "whole"), **at(server))
    # one fetch a node, not one a rank
    assert len(server.downloads) == len(set(server.downloads)) == 4
    warm.python(TRAIN, *settings(directory, "parts", "training.max_steps=5"), **at(server))
    index = json.loads((directory / "runs/parts/checkpoints/step_5/training_state/index.json").read_text())
    assert index["progress"]["rows"] % 24 > 0, "in the middle of a shard"
    server.downloads.clear()
    output = warm.torchrun(TRAIN, *settings(directory, "parts"), **at(server))
    assert "resuming from" in output
    # the cache of this node still has what the first part fetched
    assert len(server.downloads) == len(set(server.downloads)) < 4
    expected, found = (deterministic_metrics_of(directory / "runs" / name) for name in ("whole", "parts"))
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for key, value in theirs.items():
            assert mine[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key


def test_run_does_not_resume_with_another_dataset_commit(hub: tuple[FakeDatasetHub, Path]) -> None:
    server, directory = hub
    warm.python(TRAIN, *settings(directory, "moved", "training.max_steps=3"), **at(server))
    before, server.commit = server.commit, "1" * 40
    try:
        output = warm.python(TRAIN, *settings(directory, "moved"), check=False, **at(server))
    finally:
        server.commit = before
    assert before in output
    assert "1" * 40 in output
