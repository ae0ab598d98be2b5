"""From a configuration to everything that a run is made of."""

from dataclasses import dataclass

from pico_ds.config import ConfigError, RunConfig
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.corpus import open_corpus
from pico_ds.data.rows import TrainingRows
from pico_ds.data.shard_corpus import ShardCorpus
from pico_ds.data.text_corpus import TextCorpus
from pico_ds.data.texts import read_texts
from pico_ds.data.tokenizer import TextTokenizer
from pico_ds.engine.distributed import Process
from pico_ds.evaluation.evaluator import Evaluator
from pico_ds.evaluation.perplexity import JudgedRows
from pico_ds.meta.building import build_twin
from pico_ds.meta.learners import Learner, make_learner
from pico_ds.meta.network import CompileMode, Network
from pico_ds.model.attention_backends import attention_of_several_tasks, choose_attention, math_attention
from pico_ds.model.compilation import why_not_compile
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.tasks.building import TaskBuilder
from pico_ds.tasks.smlmt import SMLMT
from pico_ds.tasks.source import TaskSource
from pico_ds.training.task_batches import tasks_per_batch
from pico_ds.training.terminal import logger


@dataclass(frozen=True)
class Ingredients:
    """What the trainer and the evaluator are built from; `config` has every null of the model filled in."""

    config: RunConfig
    vocab_size: int
    corpus: TextCorpus | ShardCorpus
    network: Network
    learner: Learner
    rows: TrainingRows
    tasks: TaskSource | None
    evaluator: Evaluator


def gather_ingredients(config: RunConfig, process: Process) -> Ingredients:
    """Open the corpus, index its words, and build the twin.

    Raises:
        ConfigError: a vocabulary smaller than the tokenizer's.
        DataError: data that cannot be used.
        TaskError: a corpus that cannot supply the tasks asked for.
    """
    corpus = open_corpus(config.data)
    vocab_size = _vocab_size(config, corpus)
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})
    network = build_network(config, vocab_size, process)
    learner = make_learner(config.meta, network.twin.decoder)
    length = config.data.sequence_length
    train_tasks, held_out_tasks = _build_tasks(config, corpus)
    judged = config.meta if config.evaluation.head is None else config.meta.model_copy(update={"head": "prototype"})
    evaluator = Evaluator(
        config,
        network,
        make_learner(judged, network.twin.decoder),
        rows=corpus.validation_rows(length) if config.evaluation.n_rows else None,
        tasks=held_out_tasks,
        judged_rows=build_judged_rows(config, corpus.tokenizer, vocab_size),
        process=process,
    )
    rows = corpus.training_rows(length, config.training.seed)
    return Ingredients(config, vocab_size, corpus, network, learner, rows, train_tasks, evaluator)


def build_judged_rows(config: RunConfig, tokenizer: TextTokenizer, vocab_size: int) -> JudgedRows | None:
    """What perplexity is computed on; None where the configuration names no texts.

    Raises:
        DataError: texts that cannot be reached or used.
    """
    settings = config.evaluation.perplexity
    if settings.data is None:
        return None
    return JudgedRows(read_texts(settings), tokenizer, vocab_size, settings.max_length or config.model.max_seq_len)


def build_network(config: RunConfig, vocab_size: int, process: Process) -> Network:
    """The twin with the attention kernel and the compilation that the configuration asks for.

    Raises:
        ConfigError: an attention kernel that is not there.
    """
    model, dtype = config.model, COMPUTE_DTYPE[config.training.precision]
    heads = (model.attention_n_heads, model.attention_n_kv_heads, model.d_model // model.attention_n_heads)
    recompute = config.training.activation_checkpointing
    contexts = config.smlmt.context_tokens + LAYOUT_EXTRA_TOKENS
    has_tasks = config.meta_ratio > 0 or config.evaluation.n_tasks > 0
    lengths = sorted({config.data.sequence_length, *([contexts] if has_tasks else [])})
    chosen, attend = choose_attention(model.attention, process.device, dtype, *heads, lengths)
    twin = build_twin(model, config.meta, config.smlmt.n_ways[1], vocab_size, attend, recompute)
    together = math_attention
    apart = not make_learner(config.meta, twin.decoder).shares_weights
    if config.meta_ratio and apart and tasks_per_batch(config, twin, process.device.type == "cuda") > 1:
        _, together = attention_of_several_tasks(chosen, attend, process.device, dtype, *heads, contexts)
    return Network(
        twin,
        dtype,
        config.meta.feature_squared_norm,
        compile_mode=_compile_mode(config, process),
        attend_together=together,
        tasks_differ=config.smlmt.has_ranges,
    )


def _compile_mode(config: RunConfig, process: Process) -> CompileMode:
    if config.training.compile != "auto":
        return config.training.compile
    if process.device.type != "cuda":
        return "none"
    if (missing := why_not_compile()) is not None:
        logger.warning("warning: training.compile: auto compiles nothing, which is slower: %s", missing)
        return "none"
    return "model"


def _vocab_size(config: RunConfig, corpus: TextCorpus | ShardCorpus) -> int:
    wanted, needed = config.model.vocab_size, corpus.tokenizer.vocab_size
    if wanted is not None and wanted < needed:
        raise ConfigError(
            f"model.vocab_size: got {wanted}, but the tokenizer has {needed} entries, special tokens included; "
            f"raise it to at least {needed}, or leave it out"
        )
    return wanted or needed


def _build_tasks(config: RunConfig, corpus: TextCorpus | ShardCorpus) -> tuple[TaskSource | None, list[SMLMT]]:
    """The training tasks, and the held-out tasks once per readout; none where nothing asks for them."""
    builder, settings = TaskBuilder(config, corpus), config.evaluation
    training = builder.training() if config.meta_ratio > 0 else None
    held_out: list[SMLMT] = []
    if settings.n_tasks > 0:
        held_out = [
            builder.held_out(settings.word_split, readout) for readout in settings.readouts or [config.smlmt.readout]
        ]
        # a task that cannot be drawn is an error now, not at the first evaluation
        for number in range(settings.n_tasks):
            held_out[0].sample(step=0, index=number)
    if training is not None and builder.sentences:
        inject = config.smlmt.inject
        logger.info(
            "%.0f %% of the tasks are of %d sentences in %s", 100 * inject.ratio, len(builder.sentences), inject.path
        )
    if training is not None and (seen := builder.injected_held_out_words(settings.word_split)):
        logger.warning(
            "warning: %s trains on %d words that evaluation.word_split: %s holds out (%s): few-shot accuracy is no "
            "longer of unseen words alone",
            config.smlmt.inject.path,
            len(seen),
            settings.word_split,
            ", ".join(seen[:10]),
        )
    return training, held_out
