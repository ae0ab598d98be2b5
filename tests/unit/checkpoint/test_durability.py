"""The order in which a save reaches the disk: after a power failure, a name that exists has its whole content."""

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
    """What is brought to the disk and what is renamed, in order; a renamed directory takes what it holds along."""
    found: Events = []
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        found.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    for name in ("rename", "replace"):
        move = getattr(Path, name)

        def noted_move(self: Path, target: Path, move: object = move) -> Path:
            for place, (event, path) in enumerate(found):
                if path == self or self in path.parents:
                    found[place] = (event, target / path.relative_to(self))
            found.append(("rename", target))
            return move(self, target)  # type: ignore[operator]

        monkeypatch.setattr(Path, name, noted_move)
    return found


def test_a_small_file_is_on_the_disk_before_it_gets_its_name(events: Events, tmp_path: Path) -> None:
    replace_text(tmp_path / "status.json", "{}")
    path = tmp_path / "status.json"
    assert events == [("sync", path), ("rename", path), ("sync", tmp_path)]


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(events: Events, store: CheckpointStore) -> None:
    checkpoint = save(store, 2)
    named = events.index(("rename", checkpoint))
    synced = {path for event, path in events[:named] if event == "sync"}
    assert len([*checkpoint.rglob("*.safetensors")]) == 2
    for path in (checkpoint, *checkpoint.rglob("*")):
        assert path in synced, path


def test_latest_names_a_checkpoint_whose_own_name_is_on_the_disk(events: Events, store: CheckpointStore) -> None:
    checkpoint = save(store, 2)
    latest = store.directory / "latest"
    after = events[events.index(("rename", checkpoint)) :]
    order = [after.index(event) for event in (("sync", store.directory), ("sync", latest), ("rename", latest))]
    assert order == sorted(order)
