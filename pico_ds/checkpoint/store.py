"""The directory of checkpoints: what counts as complete, how one appears, which ones are kept."""

import re
import shutil
from pathlib import Path

from pico_ds.checkpoint.index import INDEX_NAME, STATE_DIRECTORY, Index, sync_directory, write_durably
from pico_ds.config import CheckpointingConfig

_STEP = re.compile(r"step_(\d+)")
#: checkpoints being written, and checkpoints being removed; neither counts
_PARTIAL, _REMOVED = ".partial", ".removed"


class CheckpointStore:
    """`checkpoints/` of a run. `step_<N>` appears complete, by one rename, or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or will be."""
        return self.directory / f"step_{step}"

    def staging(self, step: int, launch: int) -> Path:
        """Where a save is written. `launch` is of this start of the job: what a dead one left is never built upon."""
        return self.directory / f".step_{step}.{launch:x}{_PARTIAL}"

    def steps(self) -> list[int]:
        """Steps with a resumable checkpoint, ascending; whether it is sound is not looked at."""
        found = (
            _STEP.fullmatch(path.name)
            for path in (self.directory.iterdir() if self.directory.is_dir() else ())
            if (path / STATE_DIRECTORY / INDEX_NAME).exists()
        )
        return sorted(int(match.group(1)) for match in found if match)

    def incomplete(self) -> list[Path]:
        """Saves that were cut off, and checkpoints whose index is gone."""
        if not self.directory.is_dir():
            return []
        return sorted(
            path
            for path in self.directory.iterdir()
            if path.name.endswith(_PARTIAL)
            or ((path / STATE_DIRECTORY).is_dir() and not (path / STATE_DIRECTORY / INDEX_NAME).exists())
        )

    def publish(self, staging: Path, index: Index, launch: int) -> Path:
        """Make a complete staging directory the checkpoint of its step, and `latest` its name.

        What stands there already (a checkpoint that was damaged, or a run that went back) is moved aside, not deleted.
        """
        final = self.path(index.step)
        for inner in (staging / STATE_DIRECTORY, staging):
            sync_directory(inner)
        if final.exists():
            final.rename(final.with_name(f"{final.name}.replaced-{launch:x}"))
        staging.rename(final)
        sync_directory(self.directory)
        partial = self.directory / ".latest.partial"
        write_durably(partial, f"{final.name}\n".encode())
        partial.replace(self.directory / "latest")
        sync_directory(self.directory)
        return final

    def retain(self, settings: CheckpointingConfig, launch: int) -> None:
        """Remove what need not be kept; without `keep_last_n` nothing is ever removed."""
        if settings.keep_last_n is None:
            return
        every = settings.keep_every_n_steps
        for step in self.steps()[: -settings.keep_last_n]:
            if every is None or step % every:
                path = self.path(step)
                doomed = path / STATE_DIRECTORY if settings.keep_weights else path
                # renamed first: half a checkpoint must not look like one
                doomed.rename(self.directory / f".{path.name}{_REMOVED}")
        for path in self.directory.iterdir():
            cut_off = path.name.endswith(_PARTIAL) and path.is_dir() and f".{launch:x}." not in path.name
            if cut_off or path.name.endswith(_REMOVED):
                shutil.rmtree(path)
