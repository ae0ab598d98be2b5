"""The directory of checkpoints: what counts as complete, how one appears, which ones are kept."""

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
#: checkpoints being written, and checkpoints being removed; neither counts
_PARTIAL, _REMOVED = ".partial", ".removed"
#: of a checkpoint, or alone where none was saved at its step
_DYNAMICS = "learning_dynamics"


class CheckpointStore:
    """`checkpoints/` of a run. `step_<N>` appears complete, by one rename, or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # checkpoints and snapshots are published by threads of their own, into the same directory of a step
        self._publishing = threading.Lock()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or will be."""
        return self.directory / f"step_{step}"

    def staging(self, step: int, launch: int) -> Path:
        """Where a save is written. `launch` is of this start of the job: what a dead one left is never built upon."""
        return self.directory / f".step_{step}.{launch:x}{_PARTIAL}"

    def snapshot_path(self, step: int) -> Path:
        """Where the snapshot of learning dynamics of a step is, or will be."""
        return self.path(step) / _DYNAMICS

    def snapshot_staging(self, step: int, launch: int) -> Path:
        """Where a snapshot is written."""
        return self.directory / f".step_{step}.{launch:x}.{_DYNAMICS}{_PARTIAL}"

    def publish_snapshot(self, staging: Path, step: int) -> Path:
        """Make a complete staging directory the snapshot of a step, in place of what stands there."""
        final = self.snapshot_path(step)
        _settle(staging)
        with self._publishing:
            final.parent.mkdir(exist_ok=True)
            removed = self.directory / f".step_{step}.{_DYNAMICS}{_REMOVED}"
            # of a start that died here
            shutil.rmtree(removed, ignore_errors=True)
            if may_exist(final):
                final.rename(removed)
            staging.rename(final)
            for directory in (final.parent, self.directory):
                sync_directory(directory)
            shutil.rmtree(removed, ignore_errors=True)
        return final

    def steps(self) -> list[int]:
        """Steps with a resumable checkpoint, ascending; whether it is sound is not looked at."""
        return [_step_of(path) for path in self.directories() if may_exist(path / STATE_DIRECTORY / INDEX_NAME)]

    def directories(self) -> list[Path]:
        """Checkpoints that have, or had, a state to resume from, by step; those with weights only are left out.

        Raises:
            OSError: the directory itself cannot be read.
        """
        steps = (path for path in self._entries() if _STEP.fullmatch(path.name) and may_exist(path / STATE_DIRECTORY))
        return sorted(steps, key=_step_of)

    def survey(self) -> tuple[list[Index], list[CheckpointError]]:
        """Indexes of the resumable checkpoints, the last saved first; and what is wrong with the others."""
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
                    CheckpointError(f"{path}: is the checkpoint of step {index.step}; give it back its name")
                )
        return sorted(found, key=lambda index: index.save_number, reverse=True), problems

    def next_save_number(self) -> int:
        """One more than that of any checkpoint that can be read."""
        return max((index.save_number for index in self.survey()[0]), default=0) + 1

    def cut_off(self) -> list[Path]:
        """Saves that did not come to their end."""
        return [path for path in self._entries() if path.name.endswith(_PARTIAL)]

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def publish(self, staging: Path, index: Index, launch: int) -> Path:
        """Make a complete staging directory the checkpoint of its step, and `latest` its name.

        What stands there already (a checkpoint that was damaged, or a run that went back) is moved aside, not deleted.
        """
        final = self.path(index.step)
        _settle(staging)
        with self._publishing:
            if may_exist(final):
                final.rename(_aside(final, launch))
            staging.rename(final)
            _hand_over_snapshot(_aside(final, launch), final)
        # the directory of checkpoints, and of the run, may be as new as the checkpoint
        for directory in (self.directory, self.directory.parent, self.directory.parent.parent):
            sync_directory(directory)
        replace_text(self.directory / "latest", f"{final.name}\n")
        return final

    def finish_replacements(self) -> None:
        """Bring back what `publish` had moved aside when the machine died before the new checkpoint took its place."""
        for path in self._entries():
            if (match := _REPLACED.fullmatch(path.name)) is None:
                continue
            final, launch = self.directory / match.group(1), int(match.group(2), 16)
            if may_exist(final):
                _hand_over_snapshot(path, final)
            elif may_exist(self.staging(_step_of(final), launch)):
                path.rename(final)
                sync_directory(self.directory)

    def retain(self, newest: Index, settings: CheckpointingConfig, launch: int, protected: Collection[int]) -> None:
        """Remove what need not be kept; without `keep_last_n` nothing is ever removed.

        Counted and removed is the line that led to the newest checkpoint. What was passed over in a resume, be it
        damaged or given up for an older one, is no part of it, and stays until a user removes it.

        Args:
            newest: just published.
            launch: of this start of the job, whose saves and snapshots in flight stay.
            protected: save numbers that stay, whatever the settings say.
        """
        if settings.keep_last_n is None:
            return
        every = settings.keep_every_n_steps
        for index in self._line_of(newest)[settings.keep_last_n :]:
            if (every is None or index.step % every) and index.save_number not in protected:
                path = self.path(index.step)
                doomed = path / STATE_DIRECTORY if settings.keep_weights else path
                with self._publishing:
                    # renamed first: half a checkpoint must not look like one
                    removed = doomed.rename(self.directory / f".{path.name}{_REMOVED}")
                    if may_exist(removed / _DYNAMICS):
                        path.mkdir()
                        (removed / _DYNAMICS).rename(path / _DYNAMICS)
        for path in self.cut_off():
            if f".{launch:x}." not in path.name:
                shutil.rmtree(path)
        with self._publishing:
            for path in self._entries():
                if path.name.endswith(_REMOVED):
                    shutil.rmtree(path)

    def _line_of(self, newest: Index) -> list[Index]:
        """The checkpoints that led to the newest, itself first, back to one that was removed before."""
        saved = {index.save_number: index for index in self.survey()[0]}
        line, index = [newest], newest
        assert newest.previous_save_number != newest.save_number
        while index.previous_save_number in saved:
            index = saved[index.previous_save_number]
            line.append(index)
        return line


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _settle(staging: Path) -> None:
    """Bring the names in a directory, and below it, to the disk."""
    for directory in (*(path for path in staging.rglob("*") if path.is_dir()), staging):
        sync_directory(directory)


def _hand_over_snapshot(aside: Path, final: Path) -> None:
    """Give a new checkpoint the snapshot of its step, where that stood there alone before."""
    try:
        alone = [path.name for path in aside.iterdir()] == [_DYNAMICS]
    except OSError:  # none, or one that cannot be read
        return
    if alone and not may_exist(final / _DYNAMICS):
        (aside / _DYNAMICS).rename(final / _DYNAMICS)
        sync_directory(final)
        aside.rmdir()


def _aside(checkpoint: Path, launch: int) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.replaced-{launch:x}")
