"""Runs that several tests read. Each is trained once per test session, at its first use.

Tests must not change these runs. A test that resumes or changes a run uses `SharedRuns.copy`.
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
#: by name: the number of ranks, and the overrides of tiny.yaml
_RUNS: dict[str, tuple[int, list[str]]] = {
    "plain": (1, []),
    "resumable": (1, RESUMABLE),
    "resumable_on_two_ranks": (2, RESUMABLE),
}


class SharedRuns:
    """The runs of a test session, in a directory that all pytest workers share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        with FileLock(directory / "corpus.lock"):
            if not self.corpus.exists():
                write_text_corpus(directory / "corpus.partial").rename(self.corpus)

    @property
    def corpus(self) -> Path:
        """Path of the corpus that the runs are trained on."""
        return self._directory / "corpus.jsonl"

    def arguments(self, runs_dir: Path, name: str, *settings: str, script: str = "scripts/train.py") -> list[str]:
        """Command-line arguments of a new run on the same corpus."""
        paths = [f"data.paths=[{self.corpus}]", f"checkpointing.runs_dir={runs_dir}", f"checkpointing.run_name={name}"]
        return [script, "--config", TINY, *paths, *settings]

    def __getitem__(self, name: str) -> Path:
        """The directory of a finished run, for reading only. The first call trains the run."""
        ranks, settings = _RUNS[name]
        run, files = self._directory / name, self._directory / f"{name}.files.json"
        with FileLock(self._directory / f"{name}.lock"):
            if not files.exists():
                shutil.rmtree(run, ignore_errors=True)
                command = self.arguments(self._directory, name, *settings)
                warm.python(*command) if ranks == 1 else warm.torchrun(*command, ranks=ranks)
                replace_text(files, json.dumps(_state_of(run)))
        return run

    def copy(self, name: str, destination: Path, ignore: Callable[..., set[str]] | None = None) -> Path:
        """Copy a finished run to `destination`, which tests may change. Returns `destination`."""
        shutil.copytree(self[name], destination, ignore=ignore)
        return destination

    def check_unchanged(self) -> None:
        """Raise if a test has changed a shared run."""
        for files in self._directory.glob("*.files.json"):
            run = self._directory / files.name.removesuffix(".files.json")
            assert _state_of(run) == json.loads(files.read_text()), f"a test changed the shared run {run.name}"


def _state_of(run: Path) -> dict[str, list[int]]:
    """Size [bytes] and modification time [ns] of every file of a run."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {str(path.relative_to(run)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
