"""Resumes a run: chooses a checkpoint, checks it, and loads it."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pico_ds.checkpoint.checkpoint_index import Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.sharded_state_reader import StateReader
from pico_ds.config import CheckpointingConfig, ConfigError, RunConfig
from pico_ds.data.text.tokenizer import digest_of_file
from pico_ds.engine.distributed import Process
from pico_ds.engine.optimizer import learning_rate
from pico_ds.engine.optimizer_state import MOMENTS, OptimizerState, StateKind
from pico_ds.errors import CheckpointError, DataError, describe_os_error
from pico_ds.runs.run_directory import RunDirectory

logger = logging.getLogger("pico_ds")

#: keys and sections that may change at a resume, because they do not change what training computes
_CHANGEABLE = (
    "checkpointing.",
    "monitoring.",
    "evaluation.",
    "learning_dynamics.",
    "data.paths",
    "data.cache_dir",
    "training.max_steps",
    "training.micro_batch_size",
    "training.compile",
    "meta.tasks_per_batch",
    "model.attention",
    "training.max_consecutive_skipped_steps",
    "training.hang_timeout_seconds",
)
_NO_STEP = -1


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that was loaded into the engine.

    Attributes:
        changed: whether the run resumes with a different configuration or corpus, which the user has requested.
    """

    checkpoint: Path
    index: Index
    changed: bool = False


def will_resume(settings: CheckpointingConfig) -> bool:
    """Return whether `Resumer.resume` must load a checkpoint. If False, the run may start at step 0."""
    if settings.resume == "auto":
        run = None if settings.run_name is None else RunDirectory(Path(settings.runs_dir) / settings.run_name)
        return run is not None and bool(CheckpointStore(run.checkpoints).steps())
    return settings.resume != "never"


class Resumer:
    """Finds the checkpoint that `checkpointing.resume` asks for, and loads it into the engine."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Mapping[str, Any],
        store: CheckpointStore,
        state: OptimizerState,
        process: Process,
        since: int | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            config: the resolved configuration, as a checkpoint records it.
            corpus: identity of the corpus, as a checkpoint records it.
            since: smallest save number of the checkpoints of a restarted job, which resumes from the newest of them. If
                there are none, the job follows `checkpointing.resume` again. None if the job was not restarted.
            on_progress: called repeatedly while a checkpoint is loaded.
        """
        self._config, self._corpus, self._store, self._state = config, corpus, store, state
        self._process, self._since, self._on_progress = process, since, on_progress
        self._mode = config.checkpointing.resume

    def resume(self) -> ResumePoint | None:
        """Load a checkpoint and return it, or return None if the run starts at step 0. A collective.

        Raises:
            CheckpointError: the requested checkpoint is damaged or missing, or all checkpoints are damaged.
            ConfigError: the run was trained with a different configuration.
        """
        if self._process.is_main:
            self._store.finish_replacements()
        if self._mode == "auto":
            return self._load_newest_intact()
        if self._since is not None and (point := self._load_newest_intact(self._since)) is not None:
            return point
        if self._mode != "never":
            path = self._store.path(self._mode) if isinstance(self._mode, int) else Path(self._mode)
            return self._load(path, explicit=True)
        return None

    def _load_newest_intact(self, since: int = 0) -> ResumePoint | None:
        process = self._process
        candidates = self._candidates(since) if process.is_main else []
        tried = 0
        while True:
            step = process.from_main(candidates[tried] if tried < len(candidates) else _NO_STEP)
            if step == _NO_STEP:
                break
            try:
                point = self._load(self._store.path(step), explicit=False)
            except CheckpointError as error:
                logger.warning("skipped and left unchanged: %s", error)
                tried += 1
            else:
                reason = "the newest one" if tried == 0 else f"the newest intact one; {tried} newer skipped"
                logger.info("resuming from %s, %s", point.checkpoint, reason)
                return point
        if since == 0 and process.from_main(len(self._store.steps()) if process.is_main else 0):
            raise CheckpointError(
                f"{self._store.directory}: all checkpoints are damaged (see above); no file was changed. Start a new "
                "run with another checkpointing.run_name, or resume from another run (checkpointing.resume=PATH)"
            )
        return None

    def _candidates(self, since: int) -> list[int]:
        """Return the steps of the complete checkpoints, starting with the one that was saved last."""
        for path in self._store.interrupted_saves():
            logger.warning("skipped and left unchanged: %s is incomplete because its save was interrupted", path)
        readable, problems = self._store.survey()
        for problem in problems:
            logger.warning("skipped and left unchanged: %s", problem)
        return [index.step for index in readable if index.save_number >= since]

    def _load(self, path: Path, explicit: bool) -> ResumePoint:
        with _Agreement(self._process) as agreement:
            reader = StateReader(path)
            # earlier versions did not record the digest, but saved the tokenizer next to the weights
            tokenizer = reader.index.corpus.get("tokenizer") or digest_of_file(path / "tokenizer.json")
        agreement.raise_if_any_failed(path)
        # check these before the shapes: if the vocabulary size changed, the error must name the configuration
        self._check_tokenizer(path, tokenizer)
        changed = self._check_config(reader.index, explicit)
        with _Agreement(self._process) as agreement:
            self._check_model(reader)
        agreement.raise_if_any_failed(path)
        with reader:
            with _Agreement(self._process) as agreement:
                self._read(reader, "master")
            agreement.raise_if_any_failed(path)
            self._state.apply_master_weights()
            with _Agreement(self._process) as agreement:
                for kind in MOMENTS:
                    self._read(reader, kind)
            agreement.raise_if_any_failed(path)
        self._state.set_steps(reader.index.optimizer_steps)
        return ResumePoint(path, reader.index, changed)

    def _read(self, reader: StateReader, kind: StateKind) -> None:
        for fragment in self._state.fragments_to_load:
            self._on_progress()
            self._state.fill(fragment, kind, partial(reader.read, fragment.name, kind, fragment.offset))

    def _check_model(self, reader: StateReader) -> None:
        expected_shapes = self._state.shapes
        saved = {name: record.shape for name, record in reader.index.parameters.items()}
        for name in {**expected_shapes, **saved}:
            if expected_shapes.get(name) != saved.get(name):
                in_model, in_checkpoint = (
                    f"shape {list(shapes[name])}" if name in shapes else "no such parameter"
                    for shapes in (expected_shapes, saved)
                )
                raise CheckpointError(
                    f"{reader.checkpoint}: {name}: the model has {in_model}, the checkpoint has {in_checkpoint}. It "
                    "was saved by another model: use the model section of its training_config.yaml"
                )

    def _check_tokenizer(self, checkpoint: Path, was: str | None) -> None:
        """Check the tokenizer. A change is never allowed, because weights are useless with different token ids."""
        now = self._corpus.get("tokenizer")
        if None not in (was, now) and was != now:
            raise ConfigError(
                f"{checkpoint}: was trained with a different tokenizer (digest {was}, now {now}); set data.tokenizer "
                f"to {checkpoint}, or choose another checkpointing.run_name"
            )

    def _check_config(self, index: Index, explicit: bool) -> bool:
        """Return whether configuration or corpus have changed. Fail if they have and `explicit` is false."""
        self._warn_if_schedule_changed(index)
        changes = [*_config_changes(index.config, self._config.model_dump())]
        was, now = dict(index.corpus), dict(self._corpus)
        was.pop("tokenizer", None), now.pop("tokenizer", None)
        # checkpoints of task version 1 do not record it
        if was.pop("tasks", 1) != now.pop("tasks", 1) and self._config.meta_ratio > 0:
            changes.append("this version of pico_ds samples different tasks than the version that saved the checkpoint")
        if was != now:
            changes.append(f"the corpus was {json.dumps(was)}, now {json.dumps(now)}")
        if not changes:
            return False
        if explicit:
            logger.warning("warning: resuming with changes: %s", "; ".join(changes))
            return True
        raise ConfigError(
            f"{self._store.directory.parent}: was trained with a different configuration: {'; '.join(changes)}. "
            f"Choose another checkpointing.run_name, undo the changes, or accept them: "
            f"checkpointing.resume={index.step}"
        )

    def _warn_if_schedule_changed(self, index: Index) -> None:
        """Warn if the learning rate jumps, which a change of training.max_steps can cause."""
        expected, now = index.schedule.next_lr, learning_rate(index.step, self._config.training)
        if expected != now:
            logger.warning(
                "warning: the next learning rate is %.3e, but the checkpoint expects %.3e: the schedule or "
                "training.max_steps has changed (only training.lr_schedule=constant does not depend on max_steps)",
                now,
                expected,
            )


class _Agreement:
    """Catches errors of a block that may fail on some ranks, so that afterwards all ranks can raise together."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._error: CheckpointError | None = None

    def __enter__(self) -> "_Agreement":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, CheckpointError):
            self._error = error
        elif isinstance(error, OSError):
            self._error = CheckpointError(describe_os_error(error))
        elif isinstance(error, DataError):
            self._error = CheckpointError(str(error))
        return self._error is not None

    def raise_if_any_failed(self, path: Path) -> None:
        if not self._process.any_rank(self._error is not None):
            return
        if self._error is not None:
            if not self._process.is_main:
                logger.error("rank %d: %s", self._process.rank, self._error)
            raise self._error
        raise CheckpointError(f"{path}: another rank could not read it; see the output of that rank for the reason")


def _config_changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    # ignore keys that only one of the two has: another version of pico_ds added or removed them
    for key in (key for key in new if key in old):
        dotted = f"{path}{key}"
        if dotted.startswith(_CHANGEABLE) or f"{dotted}.".startswith(_CHANGEABLE):
            continue
        before, now = old[key], new[key]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _config_changes(before, now, f"{dotted}.")
        elif before != now:
            yield f"{dotted} was {before!r}, now {now!r}"
