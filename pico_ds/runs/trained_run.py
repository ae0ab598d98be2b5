"""Loads a trained model from a checkpoint, without a DeepSpeed engine."""

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
from pico_ds.meta.learners import make_learner
from pico_ds.meta.starting_model import initial_parameters, initial_weights_name
from pico_ds.model.meta_model import DECODER
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.model.weight_files import WeightFiles, WeightFilesError
from pico_ds.tasks.sentence_files import OnConflict, read_sentences
from pico_ds.tasks.sentence_tasks import SentenceTasks, encode_sentences
from pico_ds.tasks.task_builder import evaluation_settings
from pico_ds.tasks.task_shape import TaskShape


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and its run.

    Attributes:
        directory: directory of the checkpoint.
        run: directory of the run.
        step: number of outer steps of the checkpoint.
        config: configuration of the run with the overrides of the caller.
        run_config: configuration of the run without overrides.
    """

    directory: Path
    run: Path
    step: int
    config: RunConfig
    run_config: RunConfig
    model: Model

    @property
    def written(self) -> float:
        """Modification time of the weights [s since the epoch]."""
        return (self.directory / WEIGHTS_NAME).stat().st_mtime

    def open_corpus(self) -> Corpus:
        """Open the corpus that the model was trained on.

        Raises:
            ConfigError: the corpus now has a different tokenizer.
        """
        corpus = open_corpus(self.config.data)
        name = "tokenizer.json"
        if (corpus.tokenizer_directory / name).read_bytes() != (self.directory / name).read_bytes():
            raise ConfigError(
                f"{self.directory}: its tokenizer differs from that of data.source: {self.config.data.source}; use the "
                "data that the run was trained on"
            )
        return corpus

    def labelled_tasks(
        self, path: Path, max_tokens: int | None = None, on_conflict: OnConflict = "error"
    ) -> Callable[[TaskShape, Readout], SentenceTasks]:
        """Return a function that makes tasks of a shape and readout from a JSONL file of labelled sentences.

        Args:
            max_tokens: maximum length of a context, including `[MASK]` and the tokens at its ends;
                `model.max_seq_len` by default.
            on_conflict: what to do with a text that has several labels.

        Raises:
            TaskError: the file cannot be read.
        """
        sentences, tokenizer, config = read_sentences(path, on_conflict), self.model.tokenizer, self.config
        # do not pad beyond the longest text with its [MASK], because padding costs as much as text
        longest = max(map(len, tokenizer.encode([sentence.text for sentence in sentences]))) + 1
        max_context_tokens = (max_tokens or config.model.max_seq_len) - LAYOUT_EXTRA_TOKENS
        smlmt = config.smlmt.model_copy(update={"context_tokens": min(longest, max_context_tokens)})

        # encode once per readout, not once per task shape
        rows = cache(lambda readout: encode_sentences(sentences, tokenizer, readout, smlmt.context_tokens, on_conflict))

        def make(shape: TaskShape, readout: Readout) -> SentenceTasks:
            seed = config.data.split_seed
            return SentenceTasks(
                sentences, tokenizer, evaluation_settings(smlmt, shape), seed, readout, str(path), rows(readout)
            )

        return make


def load_trained_model(path: Path, overrides: list[str], process: Process) -> TrainedModel:
    """Return the model of a checkpoint, in the precision of its run.

    Args:
        path: a checkpoint, or a run directory, whose newest checkpoint is loaded.
        overrides: `section.key=value`, applied to the configuration of the run.

    Raises:
        CheckpointError: there is no checkpoint, or its weights are of another model.
        ConfigError: an override is invalid.
    """
    directory = _checkpoint(path)
    run = directory.resolve().parent.parent
    if not (run / "training_config.yaml").exists():
        raise CheckpointError(f"{run} has no training_config.yaml; load the checkpoint from its run directory")
    config = load_config(run / "training_config.yaml", overrides)
    vocab_size = config.model.vocab_size
    if vocab_size is None:
        raise CheckpointError(f"{run}/training_config.yaml: model.vocab_size is null; set it to the value of the run")
    dtype = COMPUTE_DTYPE[config.training.precision]
    network = build_functional_model(config, vocab_size, process.device)
    try:
        weights = _weights(directory)
    except WeightFilesError as error:
        raise CheckpointError(f"{directory}: {error}; choose another checkpoint") from error
    theta = {}
    for name, weight in network.skeleton.named_parameters():
        if name not in weights or weights[name].shape != weight.shape:
            in_checkpoint = f"shape {list(weights[name].shape)}" if name in weights else "no such parameter"
            raise CheckpointError(
                f"{directory}: {name}: the model has shape {list(weight.shape)}, the checkpoint has "
                f"{in_checkpoint}; do not change model, meta.head or meta.learner after training, or evaluate with "
                "evaluation.head=prototype"
            )
        theta[name] = weights[name].to(process.device, dtype)
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
    """Return the step in the name of a checkpoint or, if it was renamed, the step in its training state."""
    step = directory.name.removeprefix("step_")
    if step.isdecimal():
        return int(step)
    if (directory / STATE_DIRECTORY / INDEX_NAME).exists():
        return Index.read(directory).step
    raise CheckpointError(
        f"{directory}: cannot find the step of this checkpoint, which names its results: {directory.name!r} is not "
        "step_<N>, and there is no training state; name it step_<N>"
    )


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    decoder = WeightFiles(directory)
    weights = {DECODER + name: decoder.read(name) for name in decoder.names}
    if (directory / META_NAME).exists():
        meta = WeightFiles(directory, META_NAME)
        weights |= {name: meta.read(name) for name in meta.names}
    return weights


def _checkpoint(path: Path) -> Path:
    if (path / WEIGHTS_NAME).exists():
        return path
    latest = path / "checkpoints" / "latest"
    if latest.exists() and re.fullmatch(r"step_\d+", name := latest.read_text(errors="replace").strip()):
        return path / "checkpoints" / name
    raise CheckpointError(
        f"{path} is neither a checkpoint (it has no {WEIGHTS_NAME}) nor a run with a checkpoint (it has no valid "
        "checkpoints/latest)"
    )
