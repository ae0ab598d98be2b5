"""Saves checkpoints in the background. Training waits only while a shard is copied out of device memory."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from pico_ds.checkpoint.checkpoint_index import (
    FORMAT_NAME,
    FORMAT_VERSION,
    STATE_DIRECTORY,
    FragmentRecord,
    Index,
    ParameterRecord,
)
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.file_hashes import FileRecord, synced_file_record
from pico_ds.checkpoint.safetensors_writer import SafetensorsWriter, cannot_write
from pico_ds.checkpoint.sharded_state_reader import StateReader, entry_name
from pico_ds.engine.distributed import Process
from pico_ds.engine.optimizer_state import STATE_KINDS, Fragment, OptimizerState
from pico_ds.errors import CheckpointError
from pico_ds.file_writing import write_durably

#: interval at which rank 0 checks whether the other ranks have written their shards
_POLL_SECONDS = 0.02
#: interval at which waiting ranks synchronize and report progress to the watchdog
_WAIT_SECONDS = 1.0
#: number of elements written between two checks for the end of the job
_PART_ELEMENTS = 16 * 2**20
#: how long a failing job waits for an unfinished save
_ABANDON_SECONDS = 10.0
_ReceiptAdapter = TypeAdapter(tuple[FileRecord, list[Fragment]])


@dataclass(frozen=True)
class Published:
    """A checkpoint that was published.

    Attributes:
        seconds: time from the start of the save to its publication.
        stall_seconds: time for which training was paused.
    """

    path: Path
    index: Index
    seconds: float
    stall_seconds: float


class CheckpointSaver:
    """Saves the shard of this rank. At most one save runs at a time.

    The copy out of device memory overlaps with the gradient computation of the next step. The state changes only when
    that step is applied, so `pre_optim_step` waits for the copy. Every rank writes its shard and then a receipt. Rank 0
    waits for all receipts, writes the rest of the checkpoint, and publishes it.
    """

    def __init__(
        self,
        store: CheckpointStore,
        state: OptimizerState,
        process: Process,
        start_id: int,
        complete: Callable[[Path, StateReader], None],
        published: Callable[["Published"], None],
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            start_id: number that is equal on every rank and different at each start of the job.
            complete: writes the other files of the checkpoint into the staging directory. Called on rank 0, in the
                background thread, after all shards are written.
            published: called on rank 0, in the background thread.
            on_progress: called repeatedly while `finish` waits.
        """
        self._store, self._state, self._process, self._start_id = store, state, process, start_id
        self._complete, self._published, self._on_progress = complete, published, on_progress
        elements = len(STATE_KINDS) * sum(fragment.length for fragment in state.fragments)
        # allocated once, so that saves do not wait for memory to be mapped
        self._buffer = torch.zeros(elements)
        process.pin(self._buffer)
        # a thread without a selected device would open a CUDA context on the first GPU
        self._executor = ThreadPoolExecutor(1, "checkpoint", initializer=process.select_device)
        self._stream = torch.cuda.Stream(process.device) if process.device.type == "cuda" else None
        self._copy: Future[None] | None = None
        self._pending: list[Future[None]] = []
        #: time for which the current save has paused training [s]
        self.stall_seconds = 0.0
        self._abandoned = threading.Event()

    def start(self, index: Index) -> None:
        """Start a save. Every rank must call this, and `pre_optim_step` before the state changes.

        Args:
            index: index of the checkpoint, without files and parameters.

        Raises:
            CheckpointError: the previous save failed.
        """
        started = time.perf_counter()
        self.finish()
        if self._state.steps == 0:
            self._state.apply_master_weights()
            self._state.set_steps(0)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._process.device))
        staging = self._store.staging(index.step, self._start_id)
        self._copy = self._executor.submit(self._copy_shard)
        self._pending = [self._executor.submit(self._write_shard, self._copy, staging, index.step)]
        if self._process.is_main:
            self._pending.append(self._executor.submit(self._publish, staging, index, started))
        self.stall_seconds = time.perf_counter() - started

    def pre_optim_step(self) -> None:
        """Wait until the shard of this rank is copied, because the state is about to change.

        `finish` raises an error of the copy on all ranks. Raising it here would leave the other ranks waiting.
        """
        if self._copy is not None:
            started = time.perf_counter()
            wait([self._copy])
            self._copy = None
            self.stall_seconds += time.perf_counter() - started

    def _copy_shard(self) -> None:
        position = 0
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            for kind in STATE_KINDS:
                for fragment in self._state.fragments:
                    target = self._buffer[position : position + fragment.length]
                    target.copy_(self._state.read(fragment, kind), non_blocking=True)
                    position += fragment.length
        if self._stream is not None:
            self._stream.synchronize()

    @property
    def failed(self) -> bool:
        """Whether the current save has failed on this rank."""
        return any(future.done() and future.exception() is not None for future in self._pending)

    def finish(self) -> None:
        """Wait until the current save is published. Every rank must call this.

        Raises:
            CheckpointError: the save failed on any rank.
        """
        self.pre_optim_step()
        if not self._pending:
            return
        while True:
            waiting = bool(wait(self._pending, timeout=_WAIT_SECONDS, return_when=FIRST_EXCEPTION).not_done)
            if self._process.any_rank(self.failed):
                self.raise_failure()
            if not self._process.any_rank(waiting):
                break
            self._on_progress()
        self._pending = []

    def raise_failure(self) -> None:
        """Raise the error of the failed save.

        Raises:
            Exception: the error of this rank's background thread; CheckpointError if the save failed on another rank.
        """
        for future in self._pending:
            if future.done() and (error := future.exception()) is not None:
                raise error
        raise CheckpointError(
            "a checkpoint could not be saved; see the output of the other ranks. Earlier checkpoints are intact"
        )

    def abandon(self) -> None:
        """End an unfinished save without waiting for the other ranks, because the job is failing.

        Partly written files remain. If the other ranks finish their part within a few seconds, the checkpoint is still
        published.
        """
        try:
            wait(self._pending, timeout=_ABANDON_SECONDS, return_when=FIRST_EXCEPTION)
        finally:  # also after a second Ctrl-C
            self._abandoned.set()
            self._executor.shutdown(wait=True)

    def _write_shard(self, copy: "Future[None]", staging: Path, step: int) -> None:
        copy.result()  # raises if the copy failed
        rank, fragments = self._process.rank, self._state.fragments
        directory = staging / STATE_DIRECTORY
        entries = {
            entry_name(kind, fragment.name): (torch.float32, (fragment.length,))
            for kind in STATE_KINDS
            for fragment in fragments
        }
        places = {fragment.name: {"offset": fragment.offset, "shape": fragment.shape} for fragment in fragments}
        metadata = {
            "format": FORMAT_NAME,
            "format_version": str(FORMAT_VERSION),
            "step": str(step),
            "rank": str(rank),
            "world_size": str(self._process.world_size),
            "fragments": TypeAdapter(dict).dump_json(places).decode(),
        }
        with _os_errors_as_checkpoint_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            with SafetensorsWriter(directory / f"shard_{rank}.safetensors", entries, metadata) as writer:
                for part in self._buffer.split(_PART_ELEMENTS):
                    if self._abandoned.is_set():
                        raise CheckpointError(f"{staging}: is incomplete because the job ended")
                    writer.append(part)
                record = writer.finish()
            receipt = directory / f".shard_{rank}.receipt.partial"
            write_durably(receipt, _ReceiptAdapter.dump_json((record, fragments)))
            # rename, so that a receipt is always complete
            receipt.replace(_receipt(staging, rank))

    def _publish(self, staging: Path, index: Index, started: float) -> None:
        with _os_errors_as_checkpoint_errors(staging):
            index = self._completed(staging, index)
            path = self._store.publish(staging, index, self._start_id)
        self._published(Published(path, index, time.perf_counter() - started, self.stall_seconds))

    def _completed(self, staging: Path, index: Index) -> Index:
        receipts = [_receipt(staging, rank) for rank in range(self._process.world_size)]
        while not all(receipt.exists() for receipt in receipts):
            if self._abandoned.wait(_POLL_SECONDS):
                raise CheckpointError(f"{staging}: is incomplete because another rank did not write its shard")
        index = index.model_copy(update=_gathered(staging, receipts, self._state.shapes))
        for problem in index.problems(staging):
            raise CheckpointError(
                f"{staging}: {problem}; the checkpoint was not published. Earlier checkpoints are intact"
            )
        for receipt in receipts:
            receipt.unlink()
        with StateReader(staging, index) as reader:
            self._complete(staging, reader)
        files = dict(index.files)
        for path in sorted(staging.rglob("*")):
            name = path.relative_to(staging).as_posix()
            if path.is_file() and name not in files:
                files[name] = synced_file_record(path)
        index = index.model_copy(update={"files": files})
        index.write(staging)
        return index


@contextmanager
def _os_errors_as_checkpoint_errors(path: Path) -> Iterator[None]:
    """Convert errors of the file system to a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def _receipt(staging: Path, rank: int) -> Path:
    return staging / STATE_DIRECTORY / f"shard_{rank}.receipt"


def _gathered(staging: Path, receipts: Sequence[Path], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
    """Return the entries `files` and `parameters` of the index, from the receipts of all ranks."""
    files: dict[str, FileRecord] = {}
    fragments: dict[str, list[FragmentRecord]] = {name: [] for name in shapes}
    for rank, receipt in enumerate(receipts):
        record, rank_fragments = _ReceiptAdapter.validate_json(receipt.read_bytes())
        name = f"{STATE_DIRECTORY}/shard_{rank}.safetensors"
        files[name] = record
        for fragment in rank_fragments:
            fragment_record = FragmentRecord(file=name, offset=fragment.offset, length=fragment.length)
            fragments[fragment.name].append(fragment_record)
    parameters = {
        name: ParameterRecord(shape=shape, fragments=tuple(sorted(fragments[name], key=lambda record: record.offset)))
        for name, shape in shapes.items()
    }
    return {"files": files, "parameters": parameters}
