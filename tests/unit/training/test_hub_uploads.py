"""Training continues and ends even if pushes fail or the hub does not answer."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pico_ds.checkpoint.checkpoint_index import Index
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.config import RunConfig
from pico_ds.engine.distributed import Process
from pico_ds.errors import HubError
from pico_ds.hub.hub_repository import HubRepository
from pico_ds.monitoring.run_log import logger
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.training.callbacks import hub_uploads
from pico_ds.training.callbacks.hub_uploads import HubPushes
from pico_ds.training.trainer import Trainer

TOKEN = "hf_secret"
SINGLE_RANK = Process(0, 1, 0, torch.device("cpu"))


class FakeRepository:
    """For each commit: raises an error, waits for an event, or (None) succeeds."""

    repo_id = "lab/pico"

    def __init__(self, *outcomes: Exception | Event | None) -> None:
        self.outcomes = list(outcomes)
        self.commits: list[tuple[str, Mapping[str, Path | bytes]]] = []

    def commit(self, files: Mapping[str, Path | bytes], message: str) -> None:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            outcome.wait()
        self.commits.append((message, files))

    def without_token(self, message: str) -> str:
        return message.replace(TOKEN, "<token>")


class Run:
    """The end of a run of 4 steps with a checkpoint."""

    def __init__(
        self, directory: Path, repository: FakeRepository, should_continue: Callable[[], bool] = lambda: True
    ) -> None:
        hub = {"repo_id": "lab/pico", "revision": "run-3"}
        config = RunConfig.model_validate(
            {"checkpointing": {"hub": hub}, "training": {"max_steps": 4}, "model": {"vocab_size": 400}}
        )
        self.store = CheckpointStore(directory / "checkpoints")
        self.checkpoint = self.store.path(4)
        self.checkpoint.mkdir(parents=True)
        (self.checkpoint / "model.safetensors").touch()
        hub_repository = cast(HubRepository, repository)
        self.pushes = HubPushes(hub_repository, config, RunDirectory(directory), self.store, {}, should_continue)
        self.trainer = cast(
            Trainer,
            SimpleNamespace(engine=SimpleNamespace(process=SINGLE_RANK), state=SimpleNamespace(step=4), stopping=False),
        )

    def save(self) -> None:
        self.pushes.push_checkpoint(cast(Index, cast(Any, SimpleNamespace(step=4, save_number=7))), self.checkpoint)

    def end(self) -> None:
        self.pushes.on_train_end(self.trainer)
        self.pushes.on_exit()


@pytest.mark.parametrize("error", [RuntimeError(f"xet: {TOKEN}"), HubError("refused")])
def test_failed_push_is_retried_at_the_end(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO)
    repository = FakeRepository(error)
    run = Run(tmp_path, repository)
    run.save()
    run.end()
    assert "warning: step 4 was not pushed to the hub, training continues: " in caplog.text
    assert str(error).split(":")[0] in caplog.text
    assert TOKEN not in caplog.text
    ((message, files),) = repository.commits
    assert message == "end of the run"
    assert files["model.safetensors"] == run.checkpoint / "model.safetensors"
    card = cast(bytes, files["README.md"]).decode()
    assert "4 of 4 outer steps" in card
    assert card.count('from_pretrained("lab/pico", revision="run-3", trust_remote_code=True)') == 2
    assert not run.pushes.in_flight


def test_model_is_pushed_only_once(tmp_path: Path) -> None:
    repository = FakeRepository()
    run = Run(tmp_path, repository)
    run.save()
    run.end()
    assert [("model.safetensors" in files) for _, files in repository.commits] == [True, False]


@pytest.mark.parametrize("stopped", [True, False])
def test_unresponsive_hub_does_not_block_the_end_of_training(
    tmp_path: Path, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_uploads, "_WAIT_SECONDS", 0.05)
    if not stopped:
        monkeypatch.setattr(hub_uploads, "_LAST_PUSH_SECONDS", 0.2)
    answer = Event()
    run = Run(tmp_path, FakeRepository(answer, answer), should_continue=lambda: not stopped)
    started = time.monotonic()
    run.save()
    run.end()
    assert time.monotonic() - started < 5
    assert run.trainer.stopping == stopped
    # only daemon threads do not delay the exit of the process
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "hub")
    answer.set()
