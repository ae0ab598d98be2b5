"""Takes snapshots of learning dynamics during training."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.safetensors_writer import cannot_write
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.dynamics.recorder import SnapshotRecorder
from pico_ds.dynamics.snapshot_files import Snapshot, write_snapshot
from pico_ds.engine.distributed import Process
from pico_ds.errors import CheckpointError
from pico_ds.meta.functional_model_builder import build_functional_model
from pico_ds.monitoring.run_log import logger
from pico_ds.tasks.task_builder import TaskBuilder
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.run_components import RunComponents
from pico_ds.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer

_FAILED = "snapshot_failed"
#: interval at which ranks that wait for a snapshot check its state and notify the watchdog [s]
_WAIT_SECONDS = 1.0


class Snapshots(Callback):
    """Takes a snapshot every `learning_dynamics.save_every_n_steps`, including step 0.

    Rank 0 writes the snapshot in the background. If the snapshot of the resume step is missing, it is taken again.
    """

    def __init__(
        self,
        recorder: SnapshotRecorder,
        store: CheckpointStore,
        start_id: int,
        tokenizer: TextTokenizer,
        on_progress: Callable[[], None],
    ) -> None:
        """
        Args:
            start_id: identifies this start of the job (`RunContext.start_id`); equal on every rank.
            on_progress: called repeatedly while a snapshot is taken or written.
        """
        self._recorder, self._store, self._start_id, self._tokenizer = recorder, store, start_id, tokenizer
        self._on_progress = on_progress
        self._executor = ThreadPoolExecutor(1, "snapshot")
        self._writing: Future[None] | None = None

    def flags(self) -> dict[str, bool]:
        """Return whether writing the last snapshot failed on this rank."""
        return {_FAILED: self._failed}

    @property
    def _failed(self) -> bool:
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def on_train_start(self, trainer: Trainer) -> None:
        """Take the snapshot of step 0, or of the resume step if it is due and missing."""
        is_taken = trainer.engine.process.from_main(self._store.snapshot_path(trainer.state.step).exists())
        if not is_taken:
            self._take_if_due(trainer)

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Take a snapshot if the step is due. A run that must stop takes it when it resumes.

        Raises:
            CheckpointError: the last snapshot could not be written.
        """
        if _FAILED in trainer.raised_flags:
            self._finish(trainer)
        if not trainer.stopping:
            self._take_if_due(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        """Wait until the last snapshot is written."""
        self._finish(trainer)

    def on_stop(self, trainer: Trainer) -> None:
        """Wait until the last snapshot is written."""
        self._finish(trainer)

    def on_exit(self) -> None:
        """Stop the background thread. A snapshot is still being written only if training failed."""
        self._executor.shutdown(wait=True)

    def _take_if_due(self, trainer: Trainer) -> None:
        step, every = trainer.state.step, trainer.config.learning_dynamics.save_every_n_steps
        assert every is not None, "a run without snapshots must not have this callback"
        if step % every:
            return
        self._finish(trainer)
        trainer.synchronize()
        started = time.perf_counter()
        snapshot = self._recorder.take(trainer.engine.full_parameters(), step, trainer.state.rows)
        if trainer.engine.process.is_main:
            self._writing = self._executor.submit(self._write, snapshot, time.perf_counter() - started)

    def _write(self, snapshot: Snapshot, stall_seconds: float) -> None:
        started = time.perf_counter()
        staging = self._store.snapshot_staging(snapshot.step, self._start_id)
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            write_snapshot(staging, snapshot, self._tokenizer)
            size = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
            path = self._store.publish_snapshot(staging, snapshot.step)
        except OSError as error:
            raise cannot_write(staging, error) from error
        logger.info(
            "snapshot %s: %.1f MB in %.1f s; training paused for %.1f s",
            path,
            size / 1e6,
            time.perf_counter() - started,
            stall_seconds,
        )

    def _is_writing(self) -> bool:
        """Wait for the snapshot for up to `_WAIT_SECONDS`, and return whether it is still being written."""
        return self._writing is not None and bool(wait([self._writing], timeout=_WAIT_SECONDS).not_done)

    def _finish(self, trainer: Trainer) -> None:
        """Wait on all ranks until the snapshot is written. A collective.

        Raises:
            CheckpointError: the snapshot could not be written.
        """
        while trainer.engine.process.any_rank(self._is_writing()):
            self._on_progress()
        if trainer.engine.process.any_rank(self._failed):
            if self._writing is not None:
                self._writing.result()
            raise CheckpointError(
                "a snapshot could not be written; see the output of rank 0 for the reason. Earlier snapshots are intact"
            )
        self._writing = None


def build_snapshots(
    components: RunComponents,
    store: CheckpointStore,
    start_id: int,
    process: Process,
    on_progress: Callable[[], None],
) -> Snapshots:
    """Return the callback that takes the snapshots of a run. For the arguments, see `Snapshots`.

    Raises:
        ConfigError: the model does not have the configured layers.
        TaskError: the corpus cannot supply the held-out tasks.
    """
    config, corpus = components.config, components.corpus
    uncompiled = config.model_copy(update={"training": config.training.model_copy(update={"compile": "none"})})
    tasks = None
    if config.learning_dynamics.n_tasks and config.meta_ratio > 0:
        tasks = TaskBuilder(config, corpus).held_out(config.evaluation.word_split)
        tasks.sample(step=0, index=0)
    recorder = SnapshotRecorder(
        config,
        build_functional_model(uncompiled, components.vocab_size, process.device),
        components.learner,
        components.rows,
        corpus.validation_rows(config.data.sequence_length),
        tasks,
        process,
        on_progress,
    )
    return Snapshots(recorder, store, start_id, corpus.tokenizer, on_progress)
