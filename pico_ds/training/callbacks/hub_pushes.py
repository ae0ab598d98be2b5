"""Pushes to the hub as training goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from pico_ds.checkpoint.index import Index
from pico_ds.checkpoint.store import CheckpointStore
from pico_ds.config import ConfigError, RunConfig
from pico_ds.engine.distributed import Process
from pico_ds.evaluation.evaluator import EvaluationResult
from pico_ds.hub.contents import model_files, result_files, snapshot_files, snapshot_steps
from pico_ds.hub.errors import HubError
from pico_ds.hub.model_card import model_card
from pico_ds.hub.repository import HubRepository
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.run_files import RunDirectory
from pico_ds.training.terminal import logger

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer

#: between two looks at whether the last push is through [s]
_WAIT_SECONDS = 1.0


class HubPushes(Callback):
    """Pushes each checkpoint that is due, and at the end what came after it, from rank 0 and in the background.

    A push that fails is a warning: training goes on, and the next push has what this one lacked.
    """

    def __init__(
        self,
        repository: HubRepository | None,
        config: RunConfig,
        run: RunDirectory,
        store: CheckpointStore,
        results: Mapping[int, EvaluationResult],
        on_progress: Callable[[], None],
    ) -> None:
        """
        Args:
            repository: None on all ranks but the first.
            results: of the evaluations, as they come.
            on_progress: called again and again while the last push is waited for.
        """
        self._repository, self._config, self._run, self._store = repository, config, run, store
        self._results, self._on_progress = results, on_progress
        self._executor = ThreadPoolExecutor(1, "hub")
        self._pushes: list[Future[None]] = []
        self._pushed_snapshots: set[int] = set()
        #: save numbers of checkpoints that must stay until they are pushed
        self.in_flight: set[int] = set()

    def checkpoint_stands(self, index: Index, path: Path) -> None:
        """Push a checkpoint where it is due; called on rank 0, by the thread that has published it."""
        every = self._config.checkpointing.hub.every_n_steps
        if every is not None and index.step % every and index.step != self._config.training.max_steps:
            return
        self.in_flight.add(index.save_number)
        self._pushes.append(self._executor.submit(self._push_checkpoint, index, path))

    def on_train_end(self, trainer: Trainer) -> None:
        """Push what came after the last checkpoint, and wait for it, on all ranks. A collective."""
        if self._repository is not None:
            self._pushes.append(self._executor.submit(self._push, {}, trainer.state.step, "end of the run"))
        while trainer.engine.process.any_rank(bool(wait(self._pushes, timeout=_WAIT_SECONDS).not_done)):
            self._on_progress()

    def on_stop(self, trainer: Trainer) -> None:
        """What has not begun is left out: a job that is told to stop has little time."""
        waiting = [push for push in self._pushes if push.cancel()]
        if waiting:
            logger.warning("warning: %d pushes to the hub are left out; the next has what they lack", len(waiting))

    def on_exit(self) -> None:
        """Nothing new is begun."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _push_checkpoint(self, index: Index, path: Path) -> None:
        try:
            self._push(model_files(path), index.step, f"step {index.step}")
        finally:
            self.in_flight.discard(index.save_number)

    def _push(self, files: Mapping[str, Path], step: int, message: str) -> None:
        repository = self._repository
        assert repository is not None, "rank 0 alone pushes"
        new = set(snapshot_steps(self._store)) - self._pushed_snapshots
        card = model_card(repository.repo_id, self._config, step, self._results)
        content = {**files, **result_files(self._run.path), **snapshot_files(self._store, new)}
        try:
            repository.commit({**content, "README.md": card.encode()}, message)
        except HubError as error:
            logger.warning("warning: %s was not pushed to the hub, and training goes on: %s", message, error)
            return
        self._pushed_snapshots |= new
        logger.info("pushed %s to %s", message, repository.repo_id)


def prepare_repository(config: RunConfig, process: Process) -> HubRepository | None:
    """The repository that a run is pushed to, on rank 0. A collective.

    Raises:
        ConfigError: it cannot be written to.
    """
    repository, failure = None, None
    if process.is_main:
        repository = HubRepository(config.checkpointing.hub)
        try:
            repository.prepare()
        except ConfigError as error:
            failure = error
    if process.any_rank(failure is not None):
        raise failure or ConfigError("checkpointing.hub: rank 0 cannot write to the repository, and says why")
    return repository
