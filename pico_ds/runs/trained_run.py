"""A trained model from a checkpoint, without an engine."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from pico_ds.checkpoint.checkpoint_index import INDEX_NAME, STATE_DIRECTORY, Index
from pico_ds.checkpoint.huggingface_export import META_NAME, WEIGHTS_NAME
from pico_ds.config import ConfigError, Readout, RunConfig, load_config
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.corpus import Corpus, open_corpus
from pico_ds.data.text.tokenizer import load_tokenizer
from pico_ds.engine.distributed import Process
from pico_ds.errors import CheckpointError
from pico_ds.evaluation.few_shot_grid import Model
from pico_ds.meta.functional_model_builder import build_functional_model
from pico_ds.meta.initial_weights import initial_parameters, initial_weights_name
from pico_ds.meta.learners import make_learner
from pico_ds.model.meta_model import DECODER
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.model.weight_files import WeightFiles, WeightFilesError
from pico_ds.tasks.sentence_files import OnConflict, read_sentences
from pico_ds.tasks.sentence_tasks import SentenceTasks, encode_sentences
from pico_ds.tasks.task_builder import judged
from pico_ds.tasks.task_shape import TaskShape


@dataclass(frozen=True)
class TrainedModel:
    """A model and what it was trained with.

    Attributes:
        directory: of the checkpoint.
        run: directory of the run.
        step: outer steps taken.
        config: with what was overridden; `run_config` that of the run itself.
    """

    directory: Path
    run: Path
    step: int
    config: RunConfig
    run_config: RunConfig
    model: Model

    @property
    def written(self) -> float:
        """Time of the weights [s since the epoch]."""
        return (self.directory / WEIGHTS_NAME).stat().st_mtime

    def open_corpus(self) -> Corpus:
        """The corpus that it was trained on.

        Raises:
            ConfigError: the corpus has another tokenizer by now.
        """
        corpus = open_corpus(self.config.data)
        name = "tokenizer.json"
        if (corpus.tokenizer_directory / name).read_bytes() != (self.directory / name).read_bytes():
            raise ConfigError(
                f"{self.directory}: its tokenizer is not that of data.source: {self.config.data.source} any more; "
                "give the data that the run was trained on"
            )
        return corpus

    def labelled_tasks(
        self, path: Path, max_tokens: int | None = None, on_conflict: OnConflict = "error"
    ) -> Callable[[TaskShape, Readout], SentenceTasks]:
        """What makes tasks of a JSONL of sentences.

        Args:
            max_tokens: of a context, `[MASK]` and ends included; model.max_seq_len if left out.
            on_conflict: what is done with texts of several labels.

        Raises:
            TaskError: a file that cannot be read.
        """
        sentences, tokenizer, config = read_sentences(path, on_conflict), self.model.tokenizer, self.config
        # the longest text with its [MASK]; what is padded costs as much as what is not
        longest = max(map(len, tokenizer.encode([sentence.text for sentence in sentences]))) + 1
        most = (max_tokens or config.model.max_seq_len) - LAYOUT_EXTRA_TOKENS
        smlmt = config.smlmt.model_copy(update={"context_tokens": min(longest, most)})

        # for all shapes of tasks
        rows = cache(lambda readout: encode_sentences(sentences, tokenizer, readout, smlmt.context_tokens, on_conflict))

        def make(shape: TaskShape, readout: Readout) -> SentenceTasks:
            seed = config.data.split_seed
            return SentenceTasks(sentences, tokenizer, judged(smlmt, shape), seed, readout, str(path), rows(readout))

        return make


def load_trained_model(path: Path, overrides: list[str], process: Process) -> TrainedModel:
    """Load the weights of a checkpoint, in the precision of its run.

    Args:
        path: of a checkpoint, or of a run, whose newest checkpoint is taken.
        overrides: `section.key=value`, of the run's configuration.

    Raises:
        CheckpointError: no checkpoint, or weights of another model.
        ConfigError: an override that cannot be.
    """
    directory = _checkpoint(path)
    run = directory.resolve().parent.parent
    if not (run / "training_config.yaml").exists():
        raise CheckpointError(f"{run} holds no training_config.yaml; a checkpoint is evaluated where its run left it")
    config = load_config(run / "training_config.yaml", overrides)
    vocab_size = config.model.vocab_size
    if vocab_size is None:
        raise CheckpointError(f"{run}/training_config.yaml: model.vocab_size is null; a run writes the number it had")
    dtype = COMPUTE_DTYPE[config.training.precision]
    network = build_functional_model(config, vocab_size, process.device)
    try:
        found = _weights(directory)
    except WeightFilesError as error:
        raise CheckpointError(f"{directory}: {error}; give another checkpoint") from error
    theta = {}
    for name, weight in network.skeleton.named_parameters():
        if name not in found or found[name].shape != weight.shape:
            there = f"shape {list(found[name].shape)}" if name in found else "no such parameter"
            raise CheckpointError(
                f"{directory}: {name}: the model has shape {list(weight.shape)}, the checkpoint {there}; leave model, "
                "meta.head and meta.learner as they were in training, or judge by prototypes: evaluation.head=prototype"
            )
        theta[name] = found[name].to(process.device, dtype)
    model = Model(
        network,
        make_learner(config.evaluation_meta, network.skeleton.decoder),
        theta,
        partial(initial_parameters, config, process.device),
        load_tokenizer(directory),
        initial_weights_name(config),
    )
    run_config = load_config(run / "training_config.yaml")
    return TrainedModel(directory, run, _step_of(directory.resolve()), config, run_config, model)


def _step_of(directory: Path) -> int:
    """By its name; of one that was renamed, as its training state says."""
    step = directory.name.removeprefix("step_")
    if step.isdecimal():
        return int(step)
    if (directory / STATE_DIRECTORY / INDEX_NAME).exists():
        return Index.read(directory).step
    raise CheckpointError(
        f"{directory}: got the name {directory.name!r}, and no training state that knows the step, by which results "
        "are filed; name it step_<N>"
    )


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    decoder = WeightFiles(directory)
    found = {DECODER + name: decoder.read(name) for name in decoder.names}
    if (directory / META_NAME).exists():
        meta = WeightFiles(directory, META_NAME)
        found |= {name: meta.read(name) for name in meta.names}
    return found


def _checkpoint(path: Path) -> Path:
    if (path / WEIGHTS_NAME).exists():
        return path
    latest = path / "checkpoints" / "latest"
    if latest.exists() and re.fullmatch(r"step_\d+", name := latest.read_text(errors="replace").strip()):
        return path / "checkpoints" / name
    raise CheckpointError(
        f"{path} is neither a checkpoint (it holds no {WEIGHTS_NAME}) nor a run with one (no checkpoints/latest that "
        "names one)"
    )
