"""Times saving, verifying and loading a checkpoint, compared with the raw disk, DeepSpeed and torch's DCP."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pico_ds.checkpoint.background_saver import CheckpointSaver
from pico_ds.checkpoint.checkpoint_commands import verify
from pico_ds.checkpoint.checkpoint_index import Index, ScheduleRecord
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.config import RunConfig
from pico_ds.config.deepspeed_config import resolve_deepspeed_config
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.optimizer import learning_rate
from pico_ds.engine.optimizer_state import STATE_KINDS, OptimizerState
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.runs.resume import Resumer

_PIECE_BYTES = 8 * 2**20
_STEP = 1
#: tokens of the step whose computation hides the copy; every real step has far more
_ROW_TOKENS = 512


@dataclass(frozen=True)
class Timing:
    """Times of one save and one load, each of the slowest rank.

    Attributes:
        stall_seconds: time for which a save stops training.
        save_seconds: time until everything is on the disk.
        load_seconds: time to load files that are not in the page cache.
        verify_seconds: time to verify in one process; None if the method cannot verify.
    """

    stall_seconds: float
    save_seconds: float
    load_seconds: float
    verify_seconds: float | None = None


class CheckpointBenchmark:
    """Saves and loads one model in one engine in several ways."""

    def __init__(
        self, config: RunConfig, deepspeed_json: dict[str, Any], vocab_size: int, process: Process, directory: Path
    ) -> None:
        self.process, self.directory = process, directory
        self.config = config
        module = build_meta_model(config.model, config.meta, config.smlmt.n_ways[1], vocab_size, seed=0)
        settings = resolve_deepspeed_config(deepspeed_json, config, process.world_size)
        self.engine = MetaEngine(module, config.training, settings, process)
        skeleton = build_model_skeleton(config.model, config.meta, config.smlmt.n_ways[1], vocab_size)
        self.network = FunctionalModel(
            skeleton, COMPUTE_DTYPE[config.training.precision], config.meta.feature_squared_norm
        )
        self.state = OptimizerState(self.engine)
        self._take_step()
        self.store = CheckpointStore(directory / "pico_ds")
        self.saver = CheckpointSaver(self.store, self.state, process, 1, lambda *_: None, lambda *_: None)
        #: bytes that this rank saves: fp32 weights and two moments
        self.bytes = 4 * len(STATE_KINDS) * sum(fragment.length for fragment in self.state.fragments)

    def _take_step(self) -> None:
        theta = self.engine.full_parameters(for_update=True)
        gradient = {name: torch.full_like(weight, 1e-3) for name, weight in theta.items()}
        self.engine.apply_gradient(gradient, lr=1e-4)

    def run(self, repeats: int) -> list[dict[str, Any]]:
        """Return one row per method: medians over the repeats, and rates over the bytes of all ranks.

        One additional repeat comes first and is ignored. Every rank must call this.
        """
        methods: dict[str, Callable[[], Timing]] = {
            "raw disk": self._raw,
            "pico_ds": self._pico_ds,
            "deepspeed": self._deepspeed,
            "torch dcp": self._dcp,
        }
        results = {name: _medians([method() for _ in range(repeats + 1)][1:]) for name, method in methods.items()}
        self.saver.abandon()
        total = sum(n_bytes for (n_bytes,) in self.process.gather([self.bytes]))
        rows = []
        for name, seconds in results.items():
            row: dict[str, Any] = {"ranks": self.process.world_size, "stage": self.engine.stage, "way": name}
            row |= {"bytes": total, **seconds}
            for action in ("save", "load", "verify"):
                if (taken := seconds.get(f"{action}_seconds")) is not None:
                    row[f"{action}_gb_per_second"] = total / 1e9 / taken
            rows.append(row)
        return rows

    def _timed(self, action: Callable[[], object]) -> float:
        """Return the seconds that the slowest rank takes."""
        self._barrier()
        started = time.perf_counter()
        action()
        return self._slowest(time.perf_counter() - started)

    def _slowest(self, seconds: float) -> float:
        each = torch.zeros(self.process.world_size, dtype=torch.float64, device=self.process.device)
        each[self.process.rank] = seconds
        return float(self.process.sum_over_ranks(each).max())

    def _barrier(self) -> None:
        self.process.any_rank(False)

    def _drop_from_page_cache(self, directory: Path) -> None:
        """Drop the files of a directory from the page cache."""
        self._barrier()
        if self.process.is_main:
            os.sync()
            for path in directory.rglob("*"):
                if path.is_file():
                    handle = os.open(path, os.O_RDONLY)
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(handle)
        self._barrier()

    def _empty_directory(self, directory: Path) -> Path:
        self._barrier()
        if self.process.is_main:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            os.sync()
        self._barrier()
        return directory

    def _raw(self) -> Timing:
        path = self._empty_directory(self.directory / "raw") / f"{self.process.rank}.bin"
        content = self.saver._buffer.view(torch.uint8).numpy().data

        def write() -> None:
            with path.open("wb", buffering=0) as file:
                for start in range(0, len(content), _PIECE_BYTES):
                    file.write(content[start : start + _PIECE_BYTES])
                os.fsync(file.fileno())

        def read() -> None:
            buffer = memoryview(bytearray(_PIECE_BYTES))
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

        seconds = self._timed(write)
        self._drop_from_page_cache(path.parent)
        return Timing(seconds, seconds, self._timed(read))

    def _pico_ds(self) -> Timing:
        self._empty_directory(self.store.directory)

        def save() -> None:
            self.saver.start(bare_index(_STEP, self.state, self.config))
            self.saver.finish()

        seconds = self._timed(save)
        stall = self._slowest(self._stall())
        self._drop_from_page_cache(self.store.directory)
        load = self._timed(Resumer(self.config, {}, self.store, self.state, self.process).resume)
        self._drop_from_page_cache(self.store.directory)
        checked = self._timed(self._verify if self.process.is_main else lambda: None)
        return Timing(stall, seconds, load, checked)

    def _stall(self) -> float:
        """Return the stall of a save if training computes the gradient of one row before the state changes [s]."""
        self._empty_directory(self.store.directory)
        self.saver.start(bare_index(_STEP, self.state, self.config))
        theta = self.engine.full_parameters()
        rows = torch.zeros(1, _ROW_TOKENS + 1, dtype=torch.int64, device=self.process.device)
        add_language_model_gradient(self.network, theta, rows, GradientSum(theta), scale=1.0, micro_batch_size=1)
        self.saver.pre_optim_step()
        stall = self.saver.stall_seconds
        self.saver.finish()
        return stall

    def _verify(self) -> None:
        problems = list(verify(self.store.path(_STEP)))
        assert not problems, problems

    def _deepspeed(self) -> Timing:
        directory = self._empty_directory(self.directory / "deepspeed")
        deepspeed_engine = self.engine._engine
        save = self._timed(lambda: deepspeed_engine.save_checkpoint(str(directory), tag="it"))
        on_disk = save + self._timed(os.sync)
        self._drop_from_page_cache(directory)
        return Timing(save, on_disk, self._timed(lambda: deepspeed_engine.load_checkpoint(str(directory), tag="it")))

    def _dcp(self) -> Timing:
        from torch.distributed.checkpoint.state_dict_loader import load
        from torch.distributed.checkpoint.state_dict_saver import save

        directory, rank = self._empty_directory(self.directory / "dcp"), self.process.rank
        tensors: dict[str, Any] = {
            f"{kind}/{fragment.name}/{rank}": self.state.read(fragment, kind).cpu()
            for kind in STATE_KINDS
            for fragment in self.state.fragments
        }
        saved = self._timed(lambda: save(tensors, checkpoint_id=str(directory)))
        self._drop_from_page_cache(directory)
        into = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        return Timing(saved, saved, self._timed(lambda: load(into, checkpoint_id=str(directory))))


def bare_index(step: int, state: OptimizerState, config: RunConfig) -> Index:
    """Return the index of a checkpoint that does not belong to a run."""
    return Index(
        step=step,
        save_number=1,
        world_size=state.engine.process.world_size,
        zero_stage=state.engine.stage,
        precision=config.training.precision,
        optimizer_steps=state.steps,
        progress={},
        callbacks={},
        schedule=ScheduleRecord(lr_schedule=config.training.lr_schedule, next_lr=learning_rate(step, config.training)),
        config=config.model_dump(),
        corpus={},
        environment={},
        files={},
        parameters={},
    )


def _medians(timings: list[Timing]) -> dict[str, float]:
    return {
        name: median(getattr(timing, name) for timing in timings)
        for name, value in vars(timings[0]).items()
        if value is not None
    }
