"""The objects that all parts of a run share."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from pico_ds.config import RunConfig
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.engine.optimizer_state import OptimizerState
from pico_ds.faults.stop_signals import StopSignals
from pico_ds.faults.watchdog import Watchdog
from pico_ds.hub.hub_repository import HubRepository
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.runs.run_lock import RunLock
from pico_ds.tasks.masked_word_tasks import TASKS_VERSION
from pico_ds.training.run_components import RunComponents


@dataclass(frozen=True)
class RunContext:
    """Everything that this rank needs to train a run.

    Attributes:
        config_name: file name of the configuration.
        started: start time of the command [s since the epoch].
        start_id: equal on every rank and different at every start of the job. Names of partial checkpoints contain it.
        environment: hardware, versions and DeepSpeed settings.
        repository: the Hub repository to upload to, on rank 0 only; otherwise None.
    """

    config_name: str
    started: float
    start_id: int
    components: RunComponents
    engine: MetaEngine
    optimizer_state: OptimizerState
    lock: RunLock
    store: CheckpointStore
    environment: dict[str, Any]
    repository: HubRepository | None
    watchdog: Watchdog
    signals: StopSignals
    console: Console

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self.components.config

    @property
    def process(self) -> Process:
        """The process of this rank."""
        return self.engine.process

    @property
    def run(self) -> RunDirectory:
        """The directory of the run."""
        return self.lock.run

    @property
    def corpus_identity(self) -> dict[str, Any]:
        """Identity of the corpus and version of the tasks, which must not change when the run resumes."""
        return {**self.components.corpus.identity(), "tasks": TASKS_VERSION}

    def should_continue(self) -> bool:
        """Return whether training may continue on this rank. Also tell the watchdog that the rank makes progress."""
        self.watchdog.beat()
        return self.signals.received is None
