"""The order of syncs and renames in a save. After a power failure, every file that exists is complete."""

import os
from pathlib import Path

import pytest

from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.file_writing import replace_text
from tests.unit.checkpoint.conftest import save

#: ("sync", path) or ("rename", new path)
Events = list[tuple[str, Path]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Syncs and renames in order. A rename of a directory also changes the recorded paths of its files."""
    found: Events = []
    fsync = os.fsync

    def recording_fsync(descriptor: int) -> None:
        found.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    for name in ("rename", "replace"):
        move = getattr(Path, name)

        def recording_move(self: Path, target: Path, move: object = move) -> Path:
            for place, (event, path) in enumerate(found):
                if path == self or self in path.parents:
                    found[place] = (event, target / path.relative_to(self))
            found.append(("rename", target))
            return move(self, target)  # type: ignore[operator]

        monkeypatch.setattr(Path, name, recording_move)
    return found


def test_file_is_synced_before_it_is_renamed(events: Events, tmp_path: Path) -> None:
    replace_text(tmp_path / "status.json", "{}")
    path = tmp_path / "status.json"
    assert events == [("sync", path), ("rename", path), ("sync", tmp_path)]


def test_checkpoint_is_synced_before_it_is_renamed(events: Events, store: CheckpointStore) -> None:
    checkpoint = save(store, 2)
    named = events.index(("rename", checkpoint))
    synced = {path for event, path in events[:named] if event == "sync"}
    assert len([*checkpoint.rglob("*.safetensors")]) == 2
    for path in (checkpoint, *checkpoint.rglob("*")):
        assert path in synced, path


def test_checkpoint_directory_is_synced_before_latest_is_written(events: Events, store: CheckpointStore) -> None:
    checkpoint = save(store, 2)
    latest = store.directory / "latest"
    after = events[events.index(("rename", checkpoint)) :]
    order = [after.index(event) for event in (("sync", store.directory), ("sync", latest), ("rename", latest))]
    assert order == sorted(order)
