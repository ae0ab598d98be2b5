"""From a configuration to everything that a run is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pico_ds.config import ConfigError, RunConfig
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.corpus import Corpus, open_corpus
from pico_ds.data.rows import ShuffledRows, TokenRows
from pico_ds.engine.distributed import Process
from pico_ds.evaluation.evaluator import Evaluator
from pico_ds.meta.building import build_twin
from pico_ds.meta.learners import Learner, make_learner
from pico_ds.meta.network import CompileMode, Network
from pico_ds.model.attention_backends import attention_of_several_tasks, choose_attention, math_attention
from pico_ds.model.compilation import why_not_compile
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.tasks.lexicon import Lexicon, TokenClasses
from pico_ds.tasks.sentences import SentenceTasks, read_sentences
from pico_ds.tasks.smlmt import SMLMT
from pico_ds.tasks.source import MixedTasks, TaskSource
from pico_ds.tasks.word_index import WordIndex
from pico_ds.training.task_batches import tasks_per_batch
from pico_ds.training.terminal import logger


@dataclass(frozen=True)
class Ingredients:
    """What the trainer and the evaluator are built from; `config` has every null of the model filled in."""

    config: RunConfig
    vocab_size: int
    corpus: Corpus
    network: Network
    learner: Learner
    rows: ShuffledRows
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
    evaluator = Evaluator(
        config,
        network,
        learner,
        rows=TokenRows(corpus.validation, length) if config.evaluation.n_rows else None,
        tasks=held_out_tasks,
        process=process,
    )
    rows = ShuffledRows(TokenRows(corpus.train, length), config.training.seed)
    return Ingredients(config, vocab_size, corpus, network, learner, rows, train_tasks, evaluator)


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


def _vocab_size(config: RunConfig, corpus: Corpus) -> int:
    wanted, needed = config.model.vocab_size, corpus.tokenizer.vocab_size
    if wanted is not None and wanted < needed:
        raise ConfigError(
            f"model.vocab_size: got {wanted}, but the tokenizer has {needed} entries, special tokens included; "
            f"raise it to at least {needed}, or leave it out"
        )
    return wanted or needed


def _build_tasks(config: RunConfig, corpus: Corpus) -> tuple[TaskSource | None, list[SMLMT]]:
    """The training tasks, and the held-out tasks once per readout; none where nothing asks for them."""
    smlmt, evaluation, split_seed = config.smlmt, config.evaluation, config.data.split_seed
    if config.meta_ratio == 0 and evaluation.n_tasks == 0:
        return None, []
    classes = TokenClasses.of(corpus.tokenizer)
    lexicon = Lexicon.build(corpus.train, corpus.validation, corpus.tokenizer, classes)
    common: dict[str, Any] = {
        "lexicon": lexicon,
        "tokenizer": corpus.tokenizer,
        "split_seed": split_seed,
    }
    train_tasks: TaskSource | None = None
    held_out_tasks = []
    if config.meta_ratio > 0:
        index = WordIndex(corpus.train, lexicon, classes, smlmt)
        train_tasks = SMLMT(index, config=smlmt, split="train", seed=config.training.seed, **common)
        train_tasks.sample(smlmt.warmup_steps + smlmt.curriculum_steps, index=0)
        train_tasks = _with_injected(train_tasks, config, corpus, lexicon)
    if evaluation.n_tasks > 0:
        index = WordIndex(corpus.validation, lexicon, classes, smlmt)
        # the hardest shape of the training tasks, of words that are drawn alike
        judged = smlmt.model_copy(
            update={
                "n_way": smlmt.n_ways[1],
                "k_shot": smlmt.k_shots[1],
                "class_sampling": "uniform",
                "curriculum_steps": 0,
            }
        )
        # keyed by split_seed, not by the run's seed: every run is judged by the same tasks
        held_out_tasks = [
            SMLMT(index, config=judged, split=evaluation.word_split, seed=split_seed, readout=readout, **common)
            for readout in evaluation.readouts or [smlmt.readout]
        ]
        # a task that cannot be drawn is an error now, not at the first evaluation
        for number in range(evaluation.n_tasks):
            held_out_tasks[0].sample(step=0, index=number)
    return train_tasks, held_out_tasks


def _with_injected(tasks: SMLMT, config: RunConfig, corpus: Corpus, lexicon: Lexicon) -> TaskSource:
    """The tasks mixed with those of the user's own sentences, where there are any."""
    inject, seed = config.smlmt.inject, config.training.seed
    if inject.path is None:
        return tasks
    sentences = read_sentences(Path(inject.path))
    injected = SentenceTasks(sentences, corpus.tokenizer, config.smlmt, seed, name=inject.path)
    injected.sample(step=0, index=0)
    if sentences[0].kind == "word":
        split = config.evaluation.word_split
        held_out = lexicon.class_words(split, config.smlmt, config.data.split_seed)
        seen = sorted({lexicon.words[word] for word in held_out} & set(injected.classes))
        if seen:
            logger.warning(
                "warning: %s trains on %d words that evaluation.word_split: %s holds out (%s): few-shot accuracy is no "
                "longer of unseen words alone",
                inject.path,
                len(seen),
                split,
                ", ".join(seen[:10]),
            )
    logger.info("%d sentences of %d classes from %s", len(sentences), len(injected.classes), inject.path)
    return MixedTasks(tasks, injected, inject.ratio, seed)
