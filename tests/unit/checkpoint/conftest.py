"""Checkpoints of a few small tensors. The real saver writes them, one simulated rank after another."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pico_ds.checkpoint.background_saver import CheckpointSaver
from pico_ds.checkpoint.checkpoint_index import Index, ScheduleRecord
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.checkpoint.sharded_state_reader import StateReader
from pico_ds.config import RunConfig
from pico_ds.engine.distributed import Process
from pico_ds.engine.optimizer_state import STATE_KINDS, Fragment, StateKind

SHAPES = {"decoder.embedding_proj.weight": (7, 5), "decoder.output_norm.weight": (5,), "head.bias": (1,)}


class SimulatedProcess(Process):
    """One rank without peers: a sum over ranks is the value of this rank."""

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        return values


def values_of(seed: int = 0) -> dict[StateKind, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        kind: {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} for kind in STATE_KINDS
    }


@dataclass
class SimulatedOptimizerState:
    """Replaces the OptimizerState of one rank. Every rank owns an equal part of every parameter."""

    rank: int
    world_size: int
    values: dict[StateKind, dict[str, torch.Tensor]] = field(default_factory=values_of)
    steps: int = 3

    @property
    def fragments(self) -> list[Fragment]:
        pieces = []
        for name, shape in SHAPES.items():
            total = torch.Size(shape).numel()
            first, end = (total * part // self.world_size for part in (self.rank, self.rank + 1))
            if end > first:
                pieces.append(Fragment(name, shape, first, end - first))
        return pieces

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(SHAPES)

    def read(self, fragment: Fragment, kind: StateKind) -> torch.Tensor:
        flat = self.values[kind][fragment.name].flatten()
        return flat[fragment.offset : fragment.offset + fragment.length]


def make_index(step: int, world_size: int, save_number: int = 1, previous: int | None = None) -> Index:
    return Index(
        step=step,
        save_number=save_number,
        previous_save_number=previous,
        world_size=world_size,
        zero_stage=1,
        precision="fp32",
        optimizer_steps=3,
        progress={"step": step},
        callbacks={},
        schedule=ScheduleRecord(lr_schedule="cosine", next_lr=1e-3),
        config=RunConfig().model_dump(),
        corpus={},
        environment={"versions": {}},
        files={},
        parameters={},
    )


def write_nothing_else(directory: Path, reader: StateReader) -> None:
    (directory / "config.json").write_text("{}")


def make_saver(
    store: CheckpointStore,
    rank: int,
    world_size: int,
    seed: int = 0,
    start_id: int = 7,
    complete: Callable[[Path, StateReader], None] = write_nothing_else,
) -> CheckpointSaver:
    process = SimulatedProcess(rank, world_size, rank, torch.device("cpu"))
    state = SimulatedOptimizerState(rank, world_size, values_of(seed))
    return CheckpointSaver(store, state, process, start_id, complete, lambda *_: None)  # type: ignore[arg-type]


def save(
    store: CheckpointStore,
    step: int,
    world_size: int = 2,
    seed: int = 0,
    save_number: int | None = None,
    previous: int | None = -1,
    start_id: int = 7,
) -> Path:
    """Save with simulated ranks. Rank 0 is the last because it waits for the others.

    By default, the save follows the newest one.
    """
    number = store.next_save_number() if save_number is None else save_number
    before = (number - 1 or None) if previous == -1 else previous
    savers = [make_saver(store, rank, world_size, seed, start_id) for rank in reversed(range(world_size))]
    for saver in savers:
        saver.start(make_index(step, world_size, number, before))
    for saver in savers:
        saver.finish()
        saver.abandon()
    return store.path(step)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")
