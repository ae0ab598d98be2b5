"""Runs on token shards of the hub: one download per node, and resume in the middle of a shard."""

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
    # three training shards of 24 rows, which is one row less than five AR steps, and one held-out shard
    write_shards(directory, n_shards=4, rows_per_shard=[3, 3, 3, 40], width=8 * 32 + 1)
    with fake_dataset_hub() as server:
        server.add(directory)
        yield server, directory


def settings(directory: Path, name: str, *others: str) -> list[str]:
    data = ["data.source=hub", "data.dataset=lab/tokens", f"data.tokenizer={directory}/tokenizer", "data.paths=[]"]
    data += [f"data.cache_dir={directory}/cache-{name}", "smlmt.pool_steps=3", "smlmt.min_word_freq=4"]
    names = [f"checkpointing.runs_dir={directory}/runs", f"checkpointing.run_name={name}"]
    return ["--config", TINY, *data, *names, "training.max_steps=12", "training.lr_schedule=constant", *others]


def hub_variables(hub: FakeDatasetHub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def test_run_resumes_mid_shard_at_another_world_size(hub: tuple[FakeDatasetHub, Path]) -> None:
    server, directory = hub
    warm.torchrun(TRAIN, *settings(directory, "whole"), **hub_variables(server))
    # each shard is downloaded once per node, not once per rank
    assert len(server.downloads) == len(set(server.downloads)) == 4
    warm.python(TRAIN, *settings(directory, "parts", "training.max_steps=5"), **hub_variables(server))
    index = json.loads((directory / "runs/parts/checkpoints/step_5/training_state/index.json").read_text())
    assert index["progress"]["rows"] % 24 > 0, "the checkpoint is not in the middle of a shard"
    server.downloads.clear()
    output = warm.torchrun(TRAIN, *settings(directory, "parts"), **hub_variables(server))
    assert "resuming from" in output
    # the cache of the node still has the shards of the first part
    assert len(server.downloads) == len(set(server.downloads)) < 4
    expected, found = (deterministic_metrics_of(directory / "runs" / name) for name in ("whole", "parts"))
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, expected_line in zip(found, expected, strict=True):
        for key, value in expected_line.items():
            assert line[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key


def test_run_does_not_resume_with_another_dataset_commit(hub: tuple[FakeDatasetHub, Path]) -> None:
    server, directory = hub
    warm.python(TRAIN, *settings(directory, "moved", "training.max_steps=3"), **hub_variables(server))
    before, server.commit = server.commit, "1" * 40
    try:
        output = warm.python(TRAIN, *settings(directory, "moved"), check=False, **hub_variables(server))
    finally:
        server.commit = before
    assert before in output
    assert "1" * 40 in output
