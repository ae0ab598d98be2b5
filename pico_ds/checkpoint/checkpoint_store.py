"""Manages the directory of checkpoints: publishes complete checkpoints and removes old ones."""

import re
import shutil
import threading
from collections.abc import Collection
from pathlib import Path

from pico_ds.checkpoint.checkpoint_index import INDEX_NAME, STATE_DIRECTORY, Index
from pico_ds.config import CheckpointingConfig
from pico_ds.errors import CheckpointError
from pico_ds.file_writing import may_exist, replace_text, sync_directory

_STEP = re.compile(r"step_(\d+)")
_REPLACED = re.compile(r"(step_\d+)\.replaced-([0-9a-f]+)")
#: suffixes of directories that are being written or removed, and are not complete checkpoints
_PARTIAL, _REMOVED = ".partial", ".removed"
#: snapshot directory inside step_<N>, which may exist without a checkpoint
_DYNAMICS = "learning_dynamics"


class CheckpointStore:
    """The directory `checkpoints/` of a run. One rename publishes a checkpoint, so `step_<N>` is always complete."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # separate threads publish checkpoints and snapshots into the same directory
        self._publishing = threading.Lock()

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step, which may not exist."""
        return self.directory / f"step_{step}"

    def staging(self, step: int, start_id: int) -> Path:
        """Return the directory in which a save is written. It differs at each start of the job."""
        return self.directory / f".step_{step}.{start_id:x}{_PARTIAL}"

    def snapshot_path(self, step: int) -> Path:
        """Return the path of the snapshot of a step, which may not exist."""
        return self.path(step) / _DYNAMICS

    def snapshot_staging(self, step: int, start_id: int) -> Path:
        """Return the directory in which a snapshot is written."""
        return self.directory / f".step_{step}.{start_id:x}.{_DYNAMICS}{_PARTIAL}"

    def publish_snapshot(self, staging: Path, step: int) -> Path:
        """Publish a complete staging directory as the snapshot of a step. It replaces an existing snapshot."""
        final = self.snapshot_path(step)
        _sync_directories(staging)
        with self._publishing:
            final.parent.mkdir(exist_ok=True)
            removed = self.directory / f".step_{step}.{_DYNAMICS}{_REMOVED}"
            # left by an earlier start that was killed at this point
            shutil.rmtree(removed, ignore_errors=True)
            if may_exist(final):
                final.rename(removed)
            staging.rename(final)
            for directory in (final.parent, self.directory):
                sync_directory(directory)
            shutil.rmtree(removed, ignore_errors=True)
        return final

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint with an index, in ascending order. The checkpoints may be damaged."""
        return [_step_of(path) for path in self.directories() if may_exist(path / STATE_DIRECTORY / INDEX_NAME)]

    def directories(self) -> list[Path]:
        """Return the checkpoints with a training state, by step. Checkpoints with only weights are left out.

        Raises:
            OSError: the directory cannot be read.
        """
        steps = (path for path in self._entries() if _STEP.fullmatch(path.name) and may_exist(path / STATE_DIRECTORY))
        return sorted(steps, key=_step_of)

    def survey(self) -> tuple[list[Index], list[CheckpointError]]:
        """Return the indexes of the readable checkpoints, newest first, and the errors of the others."""
        found, problems = [], []
        for path in self.directories():
            try:
                index = Index.read(path)
            except CheckpointError as error:
                problems.append(error)
                continue
            if path == self.path(index.step):
                found.append(index)
            else:
                problems.append(
                    CheckpointError(
                        f"{path}: contains the checkpoint of step {index.step}; rename it to step_{index.step}"
                    )
                )
        return sorted(found, key=lambda index: index.save_number, reverse=True), problems

    def next_save_number(self) -> int:
        """Return the largest save number of the readable checkpoints, plus 1."""
        return max((index.save_number for index in self.survey()[0]), default=0) + 1

    def interrupted_saves(self) -> list[Path]:
        """Return the staging directories of saves that were interrupted."""
        return [path for path in self._entries() if path.name.endswith(_PARTIAL)]

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def publish(self, staging: Path, index: Index, start_id: int) -> Path:
        """Publish a complete staging directory as the checkpoint of its step, and update `latest`.

        An existing checkpoint of the step is renamed, not deleted. It may be damaged, or newer than the checkpoint from
        which the run was resumed.
        """
        final = self.path(index.step)
        _sync_directories(staging)
        with self._publishing:
            if may_exist(final):
                final.rename(_replaced_path(final, start_id))
            staging.rename(final)
            _move_snapshot(_replaced_path(final, start_id), final)
        # the parent directories may be new, too
        for directory in (self.directory, self.directory.parent, self.directory.parent.parent):
            sync_directory(directory)
        replace_text(self.directory / "latest", f"{final.name}\n")
        return final

    def finish_replacements(self) -> None:
        """Restore each old checkpoint that `publish` renamed, if the job was killed before the new one was renamed."""
        for path in self._entries():
            if (match := _REPLACED.fullmatch(path.name)) is None:
                continue
            final, start_id = self.directory / match.group(1), int(match.group(2), 16)
            if may_exist(final):
                _move_snapshot(path, final)
            elif may_exist(self.staging(_step_of(final), start_id)):
                path.rename(final)
                sync_directory(self.directory)

    def retain(self, newest: Index, settings: CheckpointingConfig, start_id: int, protected: Collection[int]) -> None:
        """Remove old checkpoints. Without `keep_last_n`, all are kept.

        Only the newest checkpoint and its ancestors are counted and removed. Checkpoints that a resume has skipped
        remain until a user removes them.

        Args:
            newest: the checkpoint that was just published.
            start_id: identifies this start of the job, whose unfinished saves and snapshots are kept.
            protected: save numbers of checkpoints that are always kept.
        """
        if settings.keep_last_n is None:
            return
        every = settings.keep_every_n_steps
        for index in self._lineage(newest)[settings.keep_last_n :]:
            if (every is None or index.step % every) and index.save_number not in protected:
                path = self.path(index.step)
                old = path / STATE_DIRECTORY if settings.keep_weights else path
                with self._publishing:
                    # rename first, so that a partly removed checkpoint does not look complete
                    removed = old.rename(self.directory / f".{path.name}{_REMOVED}")
                    if may_exist(removed / _DYNAMICS):
                        path.mkdir()
                        (removed / _DYNAMICS).rename(path / _DYNAMICS)
        for path in self.interrupted_saves():
            if f".{start_id:x}." not in path.name:
                shutil.rmtree(path)
        with self._publishing:
            for path in self._entries():
                if path.name.endswith(_REMOVED):
                    shutil.rmtree(path)

    def _lineage(self, newest: Index) -> list[Index]:
        """Return the newest checkpoint and its ancestors, newest first, up to the first that no longer exists."""
        saved = {index.save_number: index for index in self.survey()[0]}
        lineage, index = [newest], newest
        assert newest.previous_save_number != newest.save_number
        while index.previous_save_number in saved:
            index = saved[index.previous_save_number]
            lineage.append(index)
        return lineage


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _sync_directories(staging: Path) -> None:
    """Sync a directory and its subdirectories to the disk."""
    for directory in (*(path for path in staging.rglob("*") if path.is_dir()), staging):
        sync_directory(directory)


def _move_snapshot(replaced: Path, final: Path) -> None:
    """Move the snapshot of a step into its new checkpoint, if the old directory contains only the snapshot."""
    try:
        has_only_snapshot = [path.name for path in replaced.iterdir()] == [_DYNAMICS]
    except OSError:  # the old directory does not exist, or cannot be read
        return
    if has_only_snapshot and not may_exist(final / _DYNAMICS):
        (replaced / _DYNAMICS).rename(final / _DYNAMICS)
        sync_directory(final)
        replaced.rmdir()


def _replaced_path(checkpoint: Path, start_id: int) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.replaced-{start_id:x}")
