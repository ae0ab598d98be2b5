"""Builds the model, data, tasks and evaluator of a run from its configuration."""

from dataclasses import dataclass

from pico_ds.config import ConfigError, RunConfig
from pico_ds.data.corpus import Corpus, open_corpus
from pico_ds.data.rows import TrainingRows
from pico_ds.engine.distributed import Process
from pico_ds.evaluation.evaluator import Evaluator
from pico_ds.evaluation.perplexity import build_perplexity_dataset
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.functional_model_builder import build_functional_model
from pico_ds.meta.learners import Learner, make_learner
from pico_ds.monitoring.run_log import logger
from pico_ds.tasks.masked_word_tasks import SMLMT
from pico_ds.tasks.task_builder import TaskBuilder
from pico_ds.tasks.task_source import TaskSource


@dataclass(frozen=True)
class RunComponents:
    """The parts of a run. In `config`, `model.vocab_size` is set even if it was null."""

    config: RunConfig
    vocab_size: int
    corpus: Corpus
    network: FunctionalModel
    learner: Learner
    rows: TrainingRows
    tasks: TaskSource | None
    evaluator: Evaluator


def build_components(config: RunConfig, process: Process) -> RunComponents:
    """Open the corpus, and build the model, the tasks and the evaluator of a run.

    Raises:
        ConfigError: `model.vocab_size` is smaller than the vocabulary of the tokenizer.
        DataError: the data cannot be used.
        TaskError: the corpus cannot supply the configured tasks.
    """
    corpus = open_corpus(config.data)
    vocab_size = _vocab_size(config, corpus)
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})
    network = build_functional_model(config, vocab_size, process.device)
    learner = make_learner(config.meta, network.skeleton.decoder)
    length = config.data.sequence_length
    train_tasks, held_out_tasks = _build_tasks(config, corpus)
    evaluator = Evaluator(
        config,
        network,
        make_learner(config.evaluation_meta, network.skeleton.decoder),
        rows=corpus.validation_rows(length) if config.evaluation.n_rows else None,
        tasks=held_out_tasks,
        perplexity_dataset=build_perplexity_dataset(config, corpus.tokenizer, vocab_size),
        process=process,
    )
    rows = corpus.training_rows(length, config.training.seed)
    return RunComponents(config, vocab_size, corpus, network, learner, rows, train_tasks, evaluator)


def _vocab_size(config: RunConfig, corpus: Corpus) -> int:
    configured, required = config.model.vocab_size, corpus.tokenizer.vocab_size
    if configured is not None and configured < required:
        raise ConfigError(
            f"model.vocab_size: got {configured}, but the tokenizer has {required} entries, special tokens included; "
            f"set it to at least {required}, or leave it out"
        )
    return configured or required


def _build_tasks(config: RunConfig, corpus: Corpus) -> tuple[TaskSource | None, list[SMLMT]]:
    """Return the training tasks, and one source of held-out tasks per readout. Unused ones are None or empty."""
    builder, settings = TaskBuilder(config, corpus), config.evaluation
    training = builder.training() if config.meta_ratio > 0 else None
    held_out: list[SMLMT] = []
    if settings.n_tasks > 0:
        held_out = [
            builder.held_out(settings.word_split, readout) for readout in settings.readouts or [config.smlmt.readout]
        ]
        # sample every task once, so that an error is raised now and not at the first evaluation
        for number in range(settings.n_tasks):
            held_out[0].sample(step=0, index=number)
    if training is not None and builder.sentences:
        inject = config.smlmt.inject
        logger.info(
            "%.0f %% of the tasks use the %d sentences in %s", 100 * inject.ratio, len(builder.sentences), inject.path
        )
    if training is not None and (seen := builder.injected_held_out_words(settings.word_split)):
        logger.warning(
            "warning: %s trains on %d words that evaluation.word_split: %s holds out (%s): few-shot accuracy "
            "includes words that training has seen",
            config.smlmt.inject.path,
            len(seen),
            settings.word_split,
            ", ".join(seen[:10]),
        )
    return training, held_out
