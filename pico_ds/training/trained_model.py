"""A trained model from a checkpoint, without an engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from pico_ds.checkpoint.errors import CheckpointError
from pico_ds.checkpoint.weights import META_NAME, WEIGHTS_NAME
from pico_ds.config import ConfigError, Readout, RunConfig, load_config
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.corpus import open_corpus
from pico_ds.data.shard_corpus import ShardCorpus
from pico_ds.data.text_corpus import TextCorpus
from pico_ds.data.tokenizer import load_tokenizer
from pico_ds.engine.distributed import Process
from pico_ds.evaluation.grid import Model
from pico_ds.meta.building import build_meta_model
from pico_ds.meta.learners import make_learner
from pico_ds.model.meta_model import DECODER
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.tasks.building import judged
from pico_ds.tasks.sentences import SentenceTasks, read_sentences
from pico_ds.tasks.shape import TaskShape
from pico_ds.training.assembly import build_network


@dataclass(frozen=True)
class TrainedModel:
    """A model and what it was trained with.

    Attributes:
        directory: of the checkpoint.
        run: directory of the run.
        step: outer steps taken.
    """

    directory: Path
    run: Path
    step: int
    config: RunConfig
    model: Model

    def open_corpus(self) -> TextCorpus | ShardCorpus:
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
        self, path: Path, max_tokens: int | None = None
    ) -> Callable[[TaskShape, Readout], SentenceTasks]:
        """What makes tasks of a JSONL of sentences.

        Args:
            max_tokens: of a context, `[MASK]` and ends included; model.max_seq_len if left out.

        Raises:
            TaskError: a file that cannot be read.
        """
        sentences, tokenizer, config = read_sentences(path), self.model.tokenizer, self.config
        # the longest text with its [MASK]; what is padded costs as much as what is not
        longest = max(map(len, tokenizer.encode([sentence.text for sentence in sentences]))) + 1
        most = (max_tokens or config.model.max_seq_len) - LAYOUT_EXTRA_TOKENS
        smlmt = config.smlmt.model_copy(update={"context_tokens": min(longest, most)})

        def make(shape: TaskShape, readout: Readout) -> SentenceTasks:
            seed = config.data.split_seed
            return SentenceTasks(sentences, tokenizer, judged(smlmt, shape), seed, readout, str(path))

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
    run = directory.resolve().parents[1]
    if not (run / "training_config.yaml").exists():
        raise CheckpointError(f"{run} holds no training_config.yaml; a checkpoint is evaluated where its run left it")
    config = load_config(run / "training_config.yaml", overrides)
    vocab_size = config.model.vocab_size
    assert vocab_size is not None, "a run writes its configuration with the vocabulary filled in"
    dtype = COMPUTE_DTYPE[config.training.precision]
    untrained = build_meta_model(config.model, config.meta, config.smlmt.n_ways[1], vocab_size, config.training.seed)
    theta = _weights(directory)
    initial = {}
    for name, weight in untrained.named_parameters():
        initial[name] = weight.detach().to(process.device, dtype)
        if name not in theta or theta[name].shape != weight.shape:
            there = f"shape {list(theta[name].shape)}" if name in theta else "no such parameter"
            raise CheckpointError(
                f"{directory}: {name}: the model has shape {list(weight.shape)}, the checkpoint {there}; leave model, "
                "meta.head and meta.learner as they were in training, or take a head without parameters (prototype)"
            )
    network = build_network(config, vocab_size, process)
    model = Model(
        network,
        make_learner(config.meta, network.twin.decoder),
        {name: theta[name].to(process.device, dtype) for name in initial},
        initial,
        load_tokenizer(directory),
    )
    return TrainedModel(directory, run, int(directory.resolve().name.removeprefix("step_")), config, model)


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    found = {DECODER + name: weight for name, weight in load_file(directory / WEIGHTS_NAME).items()}
    if (directory / META_NAME).exists():
        found |= load_file(directory / META_NAME)
    return found


def _checkpoint(path: Path) -> Path:
    if (path / WEIGHTS_NAME).exists():
        return path
    latest = path / "checkpoints" / "latest"
    if latest.exists():
        return path / "checkpoints" / latest.read_text().strip()
    raise CheckpointError(
        f"{path} is neither a checkpoint (it holds no {WEIGHTS_NAME}) nor a run with one (no checkpoints/latest)"
    )
