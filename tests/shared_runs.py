"""Runs that several tests look at: each is trained once a session, whichever worker asks first, and then only read.

A test that wants to change a run, or to resume it, takes a copy.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from pico_ds.file_writing import replace_text
from tests.conftest import write_text_corpus
from tests.launching import warm
from tests.run_results import TINY

#: outer steps of the runs that tests resume
RESUMABLE_STEPS = 12
#: settings of the runs that tests resume
RESUMABLE = [
    f"training.max_steps={RESUMABLE_STEPS}",
    "checkpointing.save_every_n_steps=2",
    "evaluation.every_n_steps=3",
]
#: ranks, and what differs from tiny.yaml, by name
_RUNS: dict[str, tuple[int, list[str]]] = {
    "plain": (1, []),
    "resumable": (1, RESUMABLE),
    "resumable_on_two_ranks": (2, RESUMABLE),
}


class SharedRuns:
    """The runs of a test session, in a directory that all workers share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        with FileLock(directory / "corpus.lock"):
            if not self.corpus.exists():
                write_text_corpus(directory / "corpus.partial").rename(self.corpus)

    @property
    def corpus(self) -> Path:
        """What the runs were trained on."""
        return self._directory / "corpus.jsonl"

    def arguments(self, runs_dir: Path, name: str, *settings: str, script: str = "scripts/train.py") -> list[str]:
        """Arguments of a run on the same corpus."""
        where = [f"data.paths=[{self.corpus}]", f"checkpointing.runs_dir={runs_dir}", f"checkpointing.run_name={name}"]
        return [script, "--config", TINY, *where, *settings]

    def __getitem__(self, name: str) -> Path:
        """The directory of a finished run, to read from."""
        ranks, settings = _RUNS[name]
        run, files = self._directory / name, self._directory / f"{name}.files.json"
        with FileLock(self._directory / f"{name}.lock"):
            if not files.exists():
                shutil.rmtree(run, ignore_errors=True)
                command = self.arguments(self._directory, name, *settings)
                warm.python(*command) if ranks == 1 else warm.torchrun(*command, ranks=ranks)
                replace_text(files, json.dumps(_state_of(run)))
        return run

    def copy(self, name: str, to: Path, ignore: Callable[..., set[str]] | None = None) -> Path:
        """A copy of a finished run, to write to."""
        shutil.copytree(self[name], to, ignore=ignore)
        return to

    def check_unchanged(self) -> None:
        """Raise if a test wrote to a shared run."""
        for files in self._directory.glob("*.files.json"):
            run = self._directory / files.name.removesuffix(".files.json")
            assert _state_of(run) == json.loads(files.read_text()), f"a test changed the shared run {run.name}"


def _state_of(run: Path) -> dict[str, list[int]]:
    """Size and time of the last change [ns] of every file."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {str(path.relative_to(run)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
