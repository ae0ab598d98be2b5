"""The choice of a checkpoint, the checks before it is loaded, and the rewinding of metrics."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pico_ds.checkpoint.checkpoint_commands import find_checkpoints, verify
from pico_ds.checkpoint.checkpoint_index import INDEX_NAME, STATE_DIRECTORY, Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.config import ConfigError, RunConfig, parse_config
from pico_ds.data.text.tokenizer import load_tokenizer, train_tokenizer
from pico_ds.engine.distributed import Process
from pico_ds.engine.optimizer_state import Fragment, StateKind
from pico_ds.errors import CheckpointError
from pico_ds.monitoring.run_log import logger
from pico_ds.runs.metrics_file import rewind_metrics
from pico_ds.runs.resume import Resumer
from tests.unit.checkpoint.conftest import SHAPES, SimulatedOptimizerState, save, values_of

SINGLE_RANK = Process(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


@dataclass
class Engine(SimulatedOptimizerState):
    """An optimizer state of one rank, with values that differ from every checkpoint."""

    rank: int = 0
    world_size: int = 1
    values: dict[StateKind, dict[str, torch.Tensor]] = field(default_factory=lambda: values_of(99))

    @property
    def fragments_to_load(self) -> list[Fragment]:
        return self.fragments

    def fill(self, fragment: Fragment, kind: StateKind, read_into: Callable[[torch.Tensor], None]) -> None:
        read_into(self.values[kind][fragment.name].view(-1)[fragment.offset : fragment.offset + fragment.length])

    def apply_master_weights(self) -> None:
        pass

    def set_steps(self, steps: int) -> None:
        self.steps = steps

    def holds(self, seed: int) -> bool:
        expected = values_of(seed)
        return all(torch.equal(self.values[kind][name], expected[kind][name]) for kind in expected for name in SHAPES)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """A store of three checkpoints with different values. step_6 was saved last."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    for number, step in enumerate((2, 4, 6), start=1):
        save(store, step, world_size=3, seed=step, save_number=number)
    return store


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    import logging

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    before = logger.level
    # assigning logger.level would not clear the cache of isEnabledFor
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


def resumer(
    store: CheckpointStore, engine: Engine, *overrides: str, corpus: Any = None, since: int | None = None
) -> Resumer:
    config: RunConfig = parse_config("{}", overrides)
    return Resumer(config, corpus or {}, store, engine, SINGLE_RANK, since)  # type: ignore[arg-type]


def shard(rank: int) -> Callable[[Path], Path]:
    return lambda checkpoint: checkpoint / STATE_DIRECTORY / f"shard_{rank}.safetensors"


def index(checkpoint: Path) -> Path:
    return checkpoint / STATE_DIRECTORY / INDEX_NAME


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def snapshot(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_auto_loads_and_logs_the_checkpoint_saved_last(store: CheckpointStore, log_lines: list[str]) -> None:
    engine = Engine()
    point = resumer(store, engine).resume()
    assert point is not None
    assert (point.index.step, engine.steps) == (6, 3)
    assert engine.holds(seed=6)
    assert any(line == f"resuming from {store.path(6)}, the newest one" for line in log_lines)


def test_newest_checkpoint_is_the_last_saved_not_the_highest_step(store: CheckpointStore) -> None:
    """A run that went back to step 2 and saved step 4 again resumes from the new step 4."""
    save(store, 4, seed=40, save_number=4)
    engine = Engine()
    point = resumer(store, engine).resume()
    assert point is not None
    assert point.index.step == 4
    assert engine.holds(seed=40)
    assert store.next_save_number() == 5


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("file", [shard(0), shard(1), shard(2), index])
def test_auto_logs_and_skips_a_damaged_checkpoint_without_changing_it(
    store: CheckpointStore, log_lines: list[str], damage: Callable[[Path], None], file: Callable[[Path], Path]
) -> None:
    """The first, middle or last shard, or the index, is truncated, altered or missing."""
    damage(file(store.path(6)))
    before, engine = snapshot(store.directory), Engine()
    point = resumer(store, engine).resume()
    assert point is not None
    assert point.index.step == 4
    assert engine.holds(seed=4)
    assert any(line.startswith("skipped and left unchanged: ") and str(store.path(6)) in line for line in log_lines)
    assert snapshot(store.directory) == before


def test_checkpoint_with_a_shard_of_another_run_is_skipped(store: CheckpointStore, tmp_path: Path) -> None:
    other = save(CheckpointStore(tmp_path / "other"), 6, world_size=3, seed=60)
    shutil.copy(shard(1)(other), shard(1)(store.path(6)))
    engine = Engine()
    point = resumer(store, engine).resume()
    assert point is not None
    assert engine.holds(seed=4)


def test_auto_skips_several_damaged_checkpoints(store: CheckpointStore, log_lines: list[str]) -> None:
    flip(shard(2)(store.path(6)))
    truncate(shard(0)(store.path(4)))
    engine = Engine()
    assert resumer(store, engine).resume() is not None
    assert engine.holds(seed=2)
    assert sum(line.startswith("skipped") for line in log_lines) == 2


def test_auto_fails_if_all_checkpoints_are_damaged(store: CheckpointStore) -> None:
    for step in store.steps():
        flip(shard(0)(store.path(step)))
    before = snapshot(store.directory)
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        resumer(store, Engine()).resume()
    assert snapshot(store.directory) == before


def test_auto_without_a_complete_checkpoint_starts_at_step_0(tmp_path: Path, log_lines: list[str]) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert resumer(store, Engine()).resume() is None
    interrupted = store.staging(3, 5)
    interrupted.mkdir(parents=True)
    assert resumer(store, Engine()).resume() is None
    assert any(str(interrupted) in line and "interrupted" in line for line in log_lines)
    assert interrupted.exists()


def test_never_ignores_checkpoints(store: CheckpointStore) -> None:
    assert resumer(store, Engine(), "checkpointing.resume=never").resume() is None


@pytest.mark.parametrize("resume", ["never", "2"])
def test_restarted_job_resumes_from_its_newest_checkpoint(store: CheckpointStore, resume: str) -> None:
    engine = Engine()
    point = resumer(store, engine, f"checkpointing.resume={resume}", since=3).resume()
    assert point is not None
    assert point.index.step == 6


@pytest.mark.parametrize("damaged", [False, True])
def test_job_restarted_before_its_first_save_follows_the_resume_setting_again(
    store: CheckpointStore, damaged: bool
) -> None:
    """The newer checkpoints are from before the user went back to an earlier step."""
    if damaged:
        flip(shard(0)(save(store, 3, save_number=4, previous=1)))
    engine = Engine()
    assert resumer(store, engine, "checkpointing.resume=never", since=4).resume() is None
    resumer(store, engine, "checkpointing.resume=2", since=4).resume()
    assert engine.holds(seed=2)


def test_renamed_checkpoint_is_skipped(store: CheckpointStore, log_lines: list[str]) -> None:
    store.path(6).rename(store.path(8))
    point = resumer(store, Engine()).resume()
    assert point is not None
    assert point.index.step == 4
    assert any("step_8: contains the checkpoint of step 6" in line for line in log_lines)


def test_jump_of_the_learning_rate_is_logged(store: CheckpointStore, log_lines: list[str]) -> None:
    resumer(store, Engine()).resume()
    assert any("the next learning rate is" in line and "1.000e-03" in line for line in log_lines)


def test_resume_loads_the_requested_step_or_path(store: CheckpointStore, tmp_path: Path) -> None:
    engine = Engine()
    resumer(store, engine, "checkpointing.resume=2").resume()
    assert engine.holds(seed=2)
    elsewhere = CheckpointStore(tmp_path / "new" / "checkpoints")
    resumer(elsewhere, engine, f"checkpointing.resume={store.path(4)}").resume()
    assert engine.holds(seed=4)


@pytest.mark.parametrize("step", [2, 3])
def test_requested_checkpoint_that_is_damaged_or_missing_fails(store: CheckpointStore, step: int) -> None:
    flip(shard(1)(store.path(2)))
    with pytest.raises(CheckpointError, match=f"step_{step}"):
        resumer(store, Engine(), f"checkpointing.resume={step}").resume()


def test_changed_configuration_needs_an_explicit_step(store: CheckpointStore, log_lines: list[str]) -> None:
    engine = Engine()
    with pytest.raises(ConfigError, match=r"training\.lr was 0\.0003, now 0\.001.*checkpointing\.resume=6"):
        resumer(store, engine, "training.lr=1e-3").resume()
    assert resumer(store, engine, "training.lr=1e-3", "checkpointing.resume=6").resume() is not None
    assert any("resuming with changes: training.lr was 0.0003, now 0.001" in line for line in log_lines)


def test_auto_fails_for_a_different_corpus(store: CheckpointStore) -> None:
    with pytest.raises(ConfigError, match="the corpus was"):
        resumer(store, Engine(), corpus={"train": {"tokens": 1}}).resume()


@pytest.mark.parametrize("resume", ["auto", "6"])
def test_different_tokenizer_always_fails(store: CheckpointStore, resume: str) -> None:
    Index.read(store.path(6)).model_copy(update={"corpus": {"tokenizer": "a"}}).write(store.path(6))
    override = f"checkpointing.resume={resume}"
    assert resumer(store, Engine(), override, corpus={"tokenizer": "a"}).resume() is not None
    with pytest.raises(
        ConfigError, match=r"step_6: was trained with a different tokenizer \(digest a, now b\); set data"
    ):
        resumer(store, Engine(), override, corpus={"tokenizer": "b"}).resume()


def test_tokenizer_digest_of_an_old_checkpoint_is_computed_from_its_file(store: CheckpointStore) -> None:
    train_tokenizer(["a few words"], 260, store.path(6))
    assert resumer(store, Engine(), corpus={"tokenizer": load_tokenizer(store.path(6)).digest}).resume() is not None
    with pytest.raises(ConfigError, match="was trained with a different tokenizer"):
        resumer(store, Engine(), corpus={"tokenizer": "b"}).resume()


def test_old_checkpoint_without_a_tokenizer_resumes(store: CheckpointStore) -> None:
    """Checkpoints of earlier versions do not record their tokenizer."""
    Index.read(store.path(6)).model_copy(update={"corpus": {"train": 1}}).write(store.path(6))
    assert resumer(store, Engine(), corpus={"train": 1, "tokenizer": "b"}).resume() is not None


def test_auto_fails_for_a_different_task_version(store: CheckpointStore) -> None:
    with pytest.raises(
        ConfigError, match=r"samples different tasks than the version that saved .*checkpointing\.resume=6"
    ):
        resumer(store, Engine(), corpus={"tasks": 2}).resume()


def test_changed_vocabulary_is_a_configuration_error(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise auto would skip every checkpoint because of the shapes of the weights."""
    monkeypatch.setitem(SHAPES, "decoder.embedding_proj.weight", (9, 5))
    with pytest.raises(ConfigError, match=r"model\.vocab_size was None, now 9"):
        resumer(store, Engine(), "model.vocab_size=9").resume()


def test_keys_that_do_not_affect_training_may_change(store: CheckpointStore) -> None:
    overrides = ["training.max_steps=9", "evaluation.n_tasks=3", "monitoring.log_every_n_steps=1", "data.cache_dir=/x"]
    assert resumer(store, Engine(), *overrides, "checkpointing.keep_last_n=1").resume() is not None


def test_parameter_of_a_different_shape_fails(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "decoder.output_norm.weight", (6,))
    with pytest.raises(CheckpointError, match=r"the model has shape \[6\], the checkpoint has shape \[5\]"):
        resumer(store, Engine(), "checkpointing.resume=6").resume()


def test_parameter_that_the_model_lacks_fails(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SHAPES, "head.bias")
    with pytest.raises(CheckpointError, match=r"head\.bias: the model has no such parameter, the checkpoint"):
        resumer(store, Engine(), "checkpointing.resume=6").resume()


def test_rewind_removes_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "lr": 0.1}\n\xff\xfe\0\0')
    rewind_metrics(path, 1)
    assert path.read_text() == '{"step": 1, "lr": 0.1}\n'


def test_metrics_are_rewound_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "lr": 0.1} for step in range(1, 6)]
    lines.insert(3, {"step": 3, "eval/x": 1})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"step": 6, "l')
    rewind_metrics(path, 3)
    assert path.read_text() == "".join(json.dumps({"step": step, "lr": 0.1}) + "\n" for step in (1, 2, 3))
    superseded = (tmp_path / "metrics.superseded.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in superseded[:3]] == [3, 4, 5]
    assert superseded[3] == '{"step": 6, "l'
    rewind_metrics(path, 3)
    assert len(path.read_text().splitlines()) == 3


def make_circular_link(path: Path) -> None:
    path.unlink() if path.is_file() else shutil.rmtree(path)
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    "file",
    [lambda path: path, lambda path: path / STATE_DIRECTORY, shard(0), index],
    ids=["step", "state", "0", "index"],
)
def test_circular_links_are_logged_and_skipped(
    store: CheckpointStore, log_lines: list[str], file: Callable[[Path], Path]
) -> None:
    make_circular_link(file(store.path(6)))
    point = resumer(store, Engine()).resume()
    assert point is not None
    assert point.index.step == 4
    (line,) = [line for line in log_lines if line.startswith("skipped and left unchanged: ")]
    assert str(store.path(6)) in line


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("part", ["", STATE_DIRECTORY, f"{STATE_DIRECTORY}/shard_1.safetensors"])
def test_unreadable_checkpoint_is_logged_and_skipped(
    store: CheckpointStore, log_lines: list[str], monkeypatch: pytest.MonkeyPatch, number: int, part: str
) -> None:
    """The file system fails for every access at or below a path. `chmod 000` would not fail for root."""
    unreadable = os.path.normpath(store.path(6) / part)

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if not isinstance(path, int) and (f"{os.fspath(path)}/").startswith(f"{unreadable}/"):
                raise OSError(number, os.strerror(number), os.fspath(path))
            return function(path, *arguments, **options)

        return call

    for name in ("stat", "lstat", "open", "scandir", "listdir", "readlink"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    point = resumer(store, Engine()).resume()
    assert point is not None
    assert point.index.step == 4
    (line,) = [line for line in log_lines if line.startswith("skipped and left unchanged: ")]
    assert os.strerror(number) in line
    assert str(store.path(6)) in line
    assert [problem for problem in verify(store.path(6)) if os.strerror(number) in problem]
    assert store.path(6) in find_checkpoints(store.directory)


def test_rewind_moves_and_counts_lines_that_are_not_records(tmp_path: Path, log_lines: list[str]) -> None:
    path, good = tmp_path / "metrics.jsonl", '{"step": 1, "lr": 0.1}\n'
    path.write_text(good + '5\n{}\n{"step": null}\n{"step": "1"}\n[]\n{"step": 2, "lr"')
    assert not rewind_metrics(path, step=1)
    assert path.read_text() == good
    assert (tmp_path / "metrics.superseded.jsonl").read_text().count("\n") == 6
    (line,) = log_lines
    assert line.startswith(f"warning: 6 line(s) of {path} are not records")
