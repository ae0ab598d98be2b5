"""Saves publish complete checkpoints only, and retention removes only what the configuration allows."""

import errno
import math
import time
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from pico_ds.checkpoint.checkpoint_index import STATE_DIRECTORY, Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.sharded_state_reader import StateReader
from pico_ds.config import CheckpointingConfig
from pico_ds.errors import CheckpointError
from tests.unit.checkpoint.conftest import SimulatedOptimizerState, make_index, make_saver, save, values_of


def names(store: CheckpointStore) -> set[str]:
    return {path.name for path in store.directory.iterdir()}


def test_save_publishes_the_checkpoint_and_updates_latest(store: CheckpointStore) -> None:
    save(store, 2)
    save(store, 10)
    assert names(store) == {"step_2", "step_10", "latest"}
    assert store.steps() == [2, 10]
    assert (store.directory / "latest").read_text() == "step_10\n"


def test_save_without_the_shard_of_another_rank_is_not_published(store: CheckpointStore) -> None:
    saver = make_saver(store, rank=0, world_size=2)
    saver.start(make_index(4, 2))
    saver._pending[0].result(timeout=10)
    saver._abandoned.set()
    with pytest.raises(CheckpointError, match="another rank did not write its shard"):
        saver.finish()
    assert store.steps() == []
    assert [path.name for path in store.interrupted_saves()] == [".step_4.7.partial"]


def test_save_ignores_changes_after_the_copy(store: CheckpointStore) -> None:
    saver = make_saver(store, rank=0, world_size=1)
    saver.start(make_index(4, 1))
    saver.pre_optim_step()
    for tensors in saver._state.values.values():  # type: ignore[attr-defined]
        for tensor in tensors.values():
            tensor.fill_(math.nan)
    saver.finish()
    with StateReader(store.path(4)) as reader:
        for kind, tensors in values_of().items():
            for name, tensor in tensors.items():
                assert torch.equal(reader.read_whole(name, kind), tensor)


def test_background_error_is_raised_by_finish(store: CheckpointStore) -> None:
    def fail(directory: Path, reader: StateReader) -> None:
        raise CheckpointError("no space for the weights")

    saver = make_saver(store, rank=0, world_size=1, complete=fail)
    saver.start(make_index(4, 1))
    saver._executor.shutdown(wait=True)
    assert saver.failed
    with pytest.raises(CheckpointError, match="no space for the weights"):
        saver.finish()
    assert store.steps() == []


def test_failed_copy_is_not_published(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("the device is gone")

    saver = make_saver(store, rank=0, world_size=1)
    monkeypatch.setattr(saver._state, "read", fail)
    saver.start(make_index(4, 1))
    saver.pre_optim_step()  # an error on only one rank would leave the other ranks waiting
    saver.abandon()
    assert saver.failed
    with pytest.raises(RuntimeError, match="the device is gone"):
        saver.raise_failure()
    assert not store.directory.exists()


def test_full_disk_error_names_the_file(store: CheckpointStore) -> None:
    def fail(directory: Path, reader: StateReader) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(directory / "config.json"))

    saver = make_saver(store, rank=0, world_size=1, complete=fail)
    saver.start(make_index(4, 1))
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be written \(No space left on device\)"):
        saver.finish()


def test_save_fails_if_another_rank_failed(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match="see the output of the other ranks"):
        make_saver(store, rank=0, world_size=1).raise_failure()


def test_save_ignores_files_of_a_dead_job(store: CheckpointStore) -> None:
    make_saver(store, rank=1, world_size=2, start_id=5).start(make_index(4, 2))
    saver = make_saver(store, rank=0, world_size=2, start_id=6)
    saver.start(make_index(4, 2))
    saver._pending[0].result(timeout=10)
    assert not (store.staging(4, 6) / STATE_DIRECTORY / "shard_1.receipt").exists()
    saver._abandoned.set()
    saver._executor.shutdown(wait=True)
    assert store.steps() == []


def test_existing_checkpoint_of_the_step_is_moved_aside(store: CheckpointStore) -> None:
    damaged = save(store, 4)
    (damaged / STATE_DIRECTORY / "shard_0.safetensors").write_bytes(b"broken")
    save(store, 4)
    assert Index.read(store.path(4)).save_number == 2
    aside = store.directory / "step_4.replaced-7"
    assert (aside / STATE_DIRECTORY / "shard_0.safetensors").read_bytes() == b"broken"
    assert store.steps() == [4]


def retain(store: CheckpointStore, newest: int, protected: Collection[int] = (), **settings: object) -> None:
    config = CheckpointingConfig.model_validate(settings)
    store.retain(Index.read(store.path(newest)), config, start_id=7, protected=protected)


def test_no_checkpoint_is_removed_by_default(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        save(store, step)
    store.staging(9, 5).mkdir()
    before = names(store)
    retain(store, 3)
    assert names(store) == before


def test_newest_checkpoints_and_multiples_stay_resumable(store: CheckpointStore) -> None:
    for step in range(1, 8):
        save(store, step)
    retain(store, 7, keep_last_n=2, keep_every_n_steps=3)
    assert store.steps() == [3, 6, 7]
    assert names(store) == {"latest", *(f"step_{step}" for step in range(1, 8))}
    assert {path.name for path in store.path(1).iterdir()} == {"config.json"}
    assert store.interrupted_saves() == []
    assert Index.read(store.path(3)).step == 3


def test_old_checkpoints_are_removed_completely_without_keep_weights(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        save(store, step)
    retain(store, 3, keep_last_n=1, keep_weights=False)
    assert names(store) == {"step_3", "latest"}


def test_interrupted_saves_are_removed_with_old_checkpoints(store: CheckpointStore) -> None:
    save(store, 1)
    for start_id in (5, 7):
        store.staging(9, start_id).mkdir()
    (store.directory / ".step_0.removed").mkdir()
    (store.directory / ".step_0.removed" / "half").write_text("")
    retain(store, 1, keep_last_n=1)
    assert names(store) == {"step_1", "latest", store.staging(9, 7).name}


def test_save_after_an_earlier_resume_removes_only_its_own_branch(store: CheckpointStore) -> None:
    """Steps 20 to 40 were saved before the run resumed from step 10. They are neither removed nor counted."""
    for step in (10, 20, 30, 40):
        save(store, step)
    save(store, 12, save_number=5, previous=1)
    retain(store, 12, keep_last_n=2)
    assert store.steps() == [10, 12, 20, 30, 40]
    save(store, 14, save_number=6, previous=5)
    retain(store, 14, keep_last_n=2)
    assert store.steps() == [12, 14, 20, 30, 40]


def test_skipped_damaged_checkpoint_does_not_count_for_retention(store: CheckpointStore) -> None:
    for step in (2, 4, 6):
        save(store, step)
    shard = store.path(6) / STATE_DIRECTORY / "shard_0.safetensors"
    shard.write_bytes(b"broken")
    save(store, 5, save_number=4, previous=2)
    retain(store, 5, keep_last_n=2)
    assert store.steps() == [4, 5, 6]
    assert shard.read_bytes() == b"broken"


def test_checkpoint_that_the_run_resumed_from_is_kept(store: CheckpointStore) -> None:
    for step in (2, 4, 6):
        save(store, step)
    retain(store, 6, keep_last_n=1, protected={1})
    assert store.steps() == [2, 6]


def test_interrupted_replacement_is_undone(store: CheckpointStore) -> None:
    """The machine died after the old checkpoint was moved aside and before the new one was renamed."""
    save(store, 4, seed=1)
    aside = store.directory / "step_4.replaced-5"
    store.path(4).rename(aside)
    store.staging(4, 5).mkdir()
    store.finish_replacements()
    assert store.steps() == [4]
    with StateReader(store.path(4)) as reader:
        assert torch.equal(reader.read_whole("head.bias", "master"), values_of(1)["master"]["head.bias"])
    save(store, 4, start_id=9)
    store.finish_replacements()
    assert {"step_4", "step_4.replaced-9"} <= names(store)


@pytest.mark.parametrize("world_size", [1, 2])
def test_checkpoint_with_a_gap_is_not_published(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    """No rank has a parameter, or the ranks have only a part of it."""
    whole = SimulatedOptimizerState.fragments.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(SimulatedOptimizerState, "fragments", property(lambda self: whole(self)[1:]))
    with pytest.raises(CheckpointError, match=r"elements are in a fragment; the checkpoint was not published"):
        save(store, 4, world_size)
    assert store.steps() == []


def test_second_interrupt_ends_the_wait_for_shards(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 waits for a shard that is never written, and the user presses Ctrl-C again."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    saver = make_saver(store, rank=0, world_size=2)
    saver.start(make_index(4, 2))
    saver._pending[0].result(timeout=10)
    monkeypatch.setattr("pico_ds.checkpoint.background_saver.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saver.abandon()
    assert all(future.done() for future in saver._pending)


def test_waiting_for_a_save_reports_progress(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that takes longer than training.hang_timeout_seconds is not a hang."""
    monkeypatch.setattr("pico_ds.checkpoint.background_saver._WAIT_SECONDS", 0.01)
    beats: list[int] = []
    saver = make_saver(store, rank=0, world_size=1, complete=lambda *_: time.sleep(0.3))
    saver._on_progress = lambda: beats.append(1)
    saver.start(make_index(4, 1))
    saver.finish()
    saver.abandon()
    assert len(beats) > 3


def put_snapshot(store: CheckpointStore, step: int, content: str) -> Path:
    staging = store.snapshot_staging(step, start_id=7)
    staging.mkdir(parents=True)
    (staging / "val_weights.safetensors").write_text(content)
    return store.publish_snapshot(staging, step)


def content_of(store: CheckpointStore, step: int) -> str:
    return (store.snapshot_path(step) / "val_weights.safetensors").read_text()


def test_snapshot_and_checkpoint_of_a_step_share_a_directory(store: CheckpointStore) -> None:
    put_snapshot(store, 2, "before")
    assert store.steps() == [], "a snapshot is not a checkpoint"
    save(store, 2)
    assert content_of(store, 2) == "before"
    assert store.steps() == [2]
    put_snapshot(store, 2, "after")
    assert content_of(store, 2) == "after"
    save(store, 4)
    put_snapshot(store, 4, "later")
    assert content_of(store, 4) == "later"
    assert names(store) == {"step_2", "step_4", "latest"}


def test_snapshot_remains_after_its_checkpoint_is_removed(store: CheckpointStore) -> None:
    settings = CheckpointingConfig(keep_last_n=1, keep_weights=False)
    for number, step in enumerate((2, 4), start=1):
        put_snapshot(store, step, str(step))
        save(store, step)
        index = Index.read(store.path(step)).model_copy(update={"previous_save_number": number - 1 or None})
        store.retain(index, settings, start_id=7, protected=set())
    assert [path.name for path in store.path(2).iterdir()] == ["learning_dynamics"]
    assert content_of(store, 2) == "2"
    assert store.steps() == [4]


def test_snapshot_survives_a_crash_between_the_renames(store: CheckpointStore) -> None:
    put_snapshot(store, 2, "alone")
    store.path(2).rename(store.directory / "step_2.replaced-7")
    save(store, 2)
    store.finish_replacements()
    assert content_of(store, 2) == "alone"
    assert names(store) == {"step_2", "latest"}


def test_snapshot_replaces_an_interrupted_replacement(store: CheckpointStore) -> None:
    put_snapshot(store, 2, "old").rename(store.directory / ".step_2.learning_dynamics.removed")
    staging = store.snapshot_staging(2, start_id=5)
    staging.mkdir()
    # the machine died after the new snapshot was renamed and before the old one was removed
    staging.rename(store.snapshot_path(2))
    put_snapshot(store, 2, "again")
    assert content_of(store, 2) == "again"
    assert names(store) == {"step_2"}
