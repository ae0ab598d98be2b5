"""What a save of a run holds beside its state, and what is done once it stands."""

from pathlib import Path

from pico_ds.checkpoint.index import Index
from pico_ds.checkpoint.saver import CheckpointSaver, Published
from pico_ds.checkpoint.state_reader import StateReader
from pico_ds.checkpoint.store import CheckpointStore
from pico_ds.checkpoint.weights import export_weights
from pico_ds.engine.optimizer_state import OptimizerState
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.training.assembly import Ingredients
from pico_ds.training.callbacks.hub_pushes import HubPushes
from pico_ds.training.terminal import logger
from pico_ds.training.trackers import Tracker
from pico_ds.training.watchdog import Watchdog


def build_saver(
    ingredients: Ingredients,
    store: CheckpointStore,
    state: OptimizerState,
    launch: int,
    watchdog: Watchdog,
    trackers: list[Tracker],
    last: Index | None,
    pushes: HubPushes | None,
) -> CheckpointSaver:
    """The saver of a run.

    Args:
        launch: the same number on every rank and for snapshots, another one at every start of the job.
        last: checkpoint of this run that it goes on from; it is never removed.
        pushes: what checkpoints are pushed by, if they are.
    """
    process = state.engine.process
    protected = set() if last is None else {last.save_number}

    def complete(directory: Path, reader: StateReader) -> None:
        for tracker in trackers:
            tracker.sync()
        _export(ingredients, reader, directory)

    def published(save: Published) -> None:
        logger.info("saved %s in %.1f s; training stood still for %.3f s", save.path, save.seconds, save.stall_seconds)
        in_flight: set[int] = set()
        if pushes is not None:
            pushes.checkpoint_stands(save.index, save.path)
            in_flight = pushes.in_flight.copy()
        try:
            store.retain(save.index, ingredients.config.checkpointing, launch, protected | in_flight)
        except OSError as error:
            logger.warning("warning: an old checkpoint could not be removed: %s", error)

    return CheckpointSaver(store, state, process, launch, complete, published, watchdog.beat)


def _export(ingredients: Ingredients, reader: StateReader, directory: Path) -> None:
    config, tokenizer = ingredients.config, ingredients.corpus.tokenizer
    export_weights(
        reader,
        directory,
        shape=config.model,
        vocab_size=ingredients.vocab_size,
        dtype=COMPUTE_DTYPE[config.training.precision],
        special_token_ids={
            "bos_token_id": tokenizer.end_of_text_id,
            "eos_token_id": tokenizer.end_of_text_id,
            "pad_token_id": tokenizer.pad_id,
        },
        tokenizer_directory=ingredients.corpus.tokenizer_directory,
    )
