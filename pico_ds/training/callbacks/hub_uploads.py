"""Pushes to the hub as training goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

from pico_ds.checkpoint.checkpoint_index import Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.huggingface_export import WEIGHTS_NAME
from pico_ds.config import ConfigError, RunConfig, dump_config
from pico_ds.engine.distributed import Process
from pico_ds.errors import HubError
from pico_ds.evaluation.evaluator import EvaluationResult
from pico_ds.hub.hub_repository import HubRepository
from pico_ds.hub.model_card import model_card
from pico_ds.hub.upload_files import model_files, public_config, result_files, snapshot_files, snapshot_steps
from pico_ds.monitoring.run_log import logger
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.training.callbacks.base import Callback

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer

#: between two looks at whether the last push is through [s]
_WAIT_SECONDS = 1.0
#: what the last push may take; a large model over a slow line needs some of it [s]
_LAST_SECONDS = 1800.0


@dataclass(frozen=True)
class _Push:
    """Attributes: checkpoint: whose model goes along, unless it is in the repository already; step: of it."""

    message: str
    step: int
    checkpoint: Path
    save_number: int | None = None


class HubPushes(Callback):
    """Pushes each checkpoint that is due, and at the end what came after it, from rank 0 and in the background.

    A push that fails is a warning: training goes on, and the next push has what this one lacked. At the end, of this
    start or of a later one that finds nothing left to train, that is the model as well.
    """

    def __init__(
        self,
        repository: HubRepository | None,
        config: RunConfig,
        run: RunDirectory,
        store: CheckpointStore,
        results: Mapping[int, EvaluationResult],
        should_continue: Callable[[], bool],
    ) -> None:
        """
        Args:
            repository: None on all ranks but the first.
            results: of the evaluations, as they come.
            should_continue: called often while the last upload is in flight; waiting ends if any rank returns False.
        """
        self._repository, self._config, self._run, self._store = repository, config, run, store
        self._results, self._should_continue = results, should_continue
        self._queue: Queue[_Push] = Queue()
        self._pushed_step: int | None = None
        self._pushed_snapshots: set[int] = set()
        #: save numbers of checkpoints that must stay until they are pushed
        self.in_flight: set[int] = set()
        if repository is not None:
            # a thread that no program waits for at its end: the hub may not answer
            Thread(target=self._work, args=(repository,), name="hub", daemon=True).start()

    def checkpoint_stands(self, index: Index, path: Path) -> None:
        """Push a checkpoint where it is due; called on rank 0, by the thread that has published it."""
        every = self._config.checkpointing.hub.every_n_steps
        if every is not None and index.step % every and index.step != self._config.training.max_steps:
            return
        self.in_flight.add(index.save_number)
        self._queue.put(_Push(f"step {index.step}", index.step, path, index.save_number))

    def on_train_end(self, trainer: Trainer) -> None:
        """Push what came after the last checkpoint, and wait for it, on all ranks. A collective."""
        process, step = trainer.engine.process, trainer.state.step
        # it is not there where a run that goes on from another's checkpoint had nothing left to train
        if process.is_main and (self._store.path(step) / WEIGHTS_NAME).exists():
            self._queue.put(_Push("end of the run", step, self._store.path(step)))
        started = time.monotonic()
        while process.any_rank(self._is_busy()):
            trainer.stopping = process.any_rank(not self._should_continue())
            if trainer.stopping or process.any_rank(time.monotonic() - started > _LAST_SECONDS):
                self._leave_out()
                return

    def on_stop(self, trainer: Trainer) -> None:
        """What is not through is left out: a job that is told to stop has little time."""
        self._leave_out()

    def on_exit(self) -> None:
        """Nothing new is begun."""
        self._drop_waiting()

    def _is_busy(self) -> bool:
        """Whether a push is not through, after a wait for it."""
        queue = self._queue
        with queue.all_tasks_done:
            return not queue.all_tasks_done.wait_for(lambda: queue.unfinished_tasks == 0, timeout=_WAIT_SECONDS)

    def _leave_out(self) -> None:
        if count := self._queue.unfinished_tasks:
            logger.warning(
                "warning: %d pushes to the hub are left out; the next has what they lack: that of a later step, or of "
                "the same command again",
                count,
            )
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        with suppress(Empty):
            while True:
                self._done(self._queue.get_nowait())

    def _done(self, push: _Push) -> None:
        if push.save_number is not None:
            self.in_flight.discard(push.save_number)
        self._queue.task_done()

    def _work(self, repository: HubRepository) -> None:
        while True:
            push = self._queue.get()
            try:
                self._push(repository, push)
            # xet and LFS have errors of any type
            except Exception as error:  # noqa: BLE001
                name = "" if isinstance(error, HubError) else f"{type(error).__name__}: "
                logger.warning(
                    "warning: %s was not pushed to the hub, and training goes on: %s%s",
                    push.message,
                    name,
                    repository.without_token(str(error)),
                )
            else:
                logger.info("pushed %s to %s", push.message, repository.repo_id)
            self._done(push)

    def _push(self, repository: HubRepository, push: _Push) -> None:
        model = {} if push.step == self._pushed_step else model_files(push.checkpoint)
        new = set(snapshot_steps(self._store)) - self._pushed_snapshots
        config = public_config(self._config)
        made = {
            "README.md": model_card(repository.repo_id, config, push.step, self._results).encode(),
            "training_config.yaml": dump_config(config).encode(),
        }
        files = {**model, **result_files(self._run.path), **snapshot_files(self._store, new)}
        repository.commit({**files, **made}, push.message)
        self._pushed_step = push.step
        self._pushed_snapshots |= new


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
