"""Pushes checkpoints and results to the Hugging Face Hub during training."""

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

#: interval at which all ranks check whether the last push has finished [s]
_WAIT_SECONDS = 1.0
#: maximum time for the last push, enough for a large model over a slow connection [s]
_LAST_PUSH_SECONDS = 1800.0


@dataclass(frozen=True)
class _Push:
    """A push to the repository.

    Attributes:
        checkpoint: the model to push, unless it is already in the repository.
        step: step of the checkpoint.
    """

    message: str
    step: int
    checkpoint: Path
    save_number: int | None = None


class HubPushes(Callback):
    """Pushes each checkpoint that is due and, at the end of training, the remaining files. Runs on rank 0, in a thread.

    If a push fails, training continues with a warning, and the next push includes the missing files. The push at the
    end of training also includes the model if it was not pushed before. A finished run that is started again repeats
    the push at the end.
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
            repository: None on all ranks except rank 0.
            results: evaluation results by step; the mapping grows during training.
            should_continue: called often during the last push. If it returns False on any rank, waiting ends.
        """
        self._repository, self._config, self._run, self._store = repository, config, run, store
        self._results, self._should_continue = results, should_continue
        self._queue: Queue[_Push] = Queue()
        self._pushed_step: int | None = None
        self._pushed_snapshots: set[int] = set()
        #: save numbers of the checkpoints that must not be removed before they are pushed
        self.in_flight: set[int] = set()
        if repository is not None:
            # a daemon thread, because the process must be able to exit if the Hub does not answer
            Thread(target=self._work, args=(repository,), name="hub", daemon=True).start()

    def push_checkpoint(self, index: Index, path: Path) -> None:
        """Push a checkpoint if it is due. The thread that published it calls this, on rank 0."""
        every = self._config.checkpointing.hub.every_n_steps
        if every is not None and index.step % every and index.step != self._config.training.max_steps:
            return
        self.in_flight.add(index.save_number)
        self._queue.put(_Push(f"step {index.step}", index.step, path, index.save_number))

    def on_train_end(self, trainer: Trainer) -> None:
        """Push the remaining files and wait for the push, on all ranks. A collective."""
        process, step = trainer.engine.process, trainer.state.step
        # the weights are missing if the run resumed from a checkpoint of another run and had no steps left
        if process.is_main and (self._store.path(step) / WEIGHTS_NAME).exists():
            self._queue.put(_Push("end of the run", step, self._store.path(step)))
        started = time.monotonic()
        while process.any_rank(self._is_busy()):
            trainer.stopping = process.any_rank(not self._should_continue())
            if trainer.stopping or process.any_rank(time.monotonic() - started > _LAST_PUSH_SECONDS):
                self._skip_unfinished()
                return

    def on_stop(self, trainer: Trainer) -> None:
        """Skip unfinished pushes, because a job that must stop has little time."""
        self._skip_unfinished()

    def on_exit(self) -> None:
        """Drop the pushes that have not started."""
        self._drop_waiting()

    def _is_busy(self) -> bool:
        """Wait for the pushes for up to `_WAIT_SECONDS`, and return whether some are still unfinished."""
        queue = self._queue
        with queue.all_tasks_done:
            return not queue.all_tasks_done.wait_for(lambda: queue.unfinished_tasks == 0, timeout=_WAIT_SECONDS)

    def _skip_unfinished(self) -> None:
        if count := self._queue.unfinished_tasks:
            logger.warning(
                "warning: %d pushes to the hub are skipped; the next push includes their files. Run the same command "
                "again to push them now",
                count,
            )
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        with suppress(Empty):
            while True:
                self._mark_done(self._queue.get_nowait())

    def _mark_done(self, push: _Push) -> None:
        if push.save_number is not None:
            self.in_flight.discard(push.save_number)
        self._queue.task_done()

    def _work(self, repository: HubRepository) -> None:
        while True:
            push = self._queue.get()
            try:
                self._push(repository, push)
            # xet and LFS raise exceptions of any type
            except Exception as error:  # noqa: BLE001
                name = "" if isinstance(error, HubError) else f"{type(error).__name__}: "
                logger.warning(
                    "warning: %s was not pushed to the hub, training continues: %s%s",
                    push.message,
                    name,
                    repository.without_token(str(error)),
                )
            else:
                logger.info("pushed %s to %s", push.message, repository.repo_id)
            self._mark_done(push)

    def _push(self, repository: HubRepository, push: _Push) -> None:
        model = {} if push.step == self._pushed_step else model_files(push.checkpoint)
        new_steps = set(snapshot_steps(self._store)) - self._pushed_snapshots
        config = public_config(self._config)
        generated = {
            "README.md": model_card(repository.repo_id, config, push.step, self._results).encode(),
            "training_config.yaml": dump_config(config).encode(),
        }
        files = {**model, **result_files(self._run.path), **snapshot_files(self._store, new_steps)}
        repository.commit({**files, **generated}, push.message)
        self._pushed_step = push.step
        self._pushed_snapshots |= new_steps


def prepare_repository(config: RunConfig, process: Process) -> HubRepository | None:
    """Return the repository to which the run is pushed, on rank 0; None on other ranks. A collective.

    Raises:
        ConfigError: the repository is not writable.
    """
    repository, failure = None, None
    if process.is_main:
        repository = HubRepository(config.checkpointing.hub)
        try:
            repository.prepare()
        except ConfigError as error:
            failure = error
    if process.any_rank(failure is not None):
        raise failure or ConfigError(
            "checkpointing.hub: rank 0 cannot write to the repository; see its output for the reason"
        )
    return repository
