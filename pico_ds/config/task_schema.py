"""The sections about tasks: what they are, and how they are learned from."""

from typing import Annotated, Literal

from pydantic import Field

from pico_ds.config.field_types import (
    Fraction,
    IntRange,
    LayerCount,
    LearnerName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Readout,
    Section,
    Width,
)


class InjectConfig(Section):
    """Sentences of your own among the training tasks."""

    path: str | None = None
    """JSONL of `text` and `word`, or of `text` and `label`; null injects none"""
    ratio: Fraction = 0.5
    """share of the training tasks that are made of them"""


class SmlmtConfig(Section):
    """Subset Masked Language Modeling Tasks (Bansal et al. 2020, arXiv 2009.08445)."""

    n_way: Annotated[int, Field(ge=2, le=10**9)] | IntRange = 5
    """classes (words) of a task; a list [least, most] for a range, from which every task draws"""
    k_shot: PositiveInt | IntRange = 5
    """support contexts of a class; a list [least, most] for a range, from which every task draws"""
    q_query: PositiveInt = 5
    """query contexts of a class"""
    hybrid_ratio: Fraction = 0.5
    """probability that an outer step after warm-up is a meta step; 0 is plain autoregressive training"""
    warmup_steps: NonNegativeInt = 0
    """outer steps of autoregressive training only before the mix starts"""
    context: Literal["window", "sentence"] = "window"
    """window: context_tokens tokens centred on the word; sentence: its sentence, cut to context_tokens"""
    context_tokens: Annotated[int, Field(ge=4, le=2**24)] = 16
    """length of a window, or the longest sentence kept whole [tokens]"""
    readout: Readout = "fim"
    """where features are read: fim rotates the context to `suffix <sep> prefix [MASK]` and reads at the final [MASK];
    pre and fimpre read the position before it, unrotated and rotated; mask, last and mean do not rotate"""
    min_word_freq: PositiveInt = 50
    """least number of occurrences of a class word in the training documents (in the pool of rows, where there are any:
    smlmt.pool_rows)"""
    max_word_freq: PositiveInt = 10000
    """largest number of occurrences of a class word there"""
    validation_word_fraction: Fraction = 0.1
    """share of the class words kept for validation tasks"""
    test_word_fraction: Fraction = 0.1
    """share of the class words kept for test tasks"""
    class_sampling: Literal["uniform", "frequency", "cluster"] = "uniform"
    """how the words of a training task are drawn: all alike, in proportion to their occurrences, or out of a cluster of
    words that keep the same company and are hard to tell apart"""
    cluster_size: PositiveInt = 30
    """words nearest to the first of a task, among which the others are drawn, when class_sampling is cluster"""
    curriculum_steps: NonNegativeInt = 0
    """outer steps after the warm-up over which training tasks grow hard: n_way from the least, k_shot from the most,
    classes from uniform to those of class_sampling; 0: they are so from the start"""
    pool_rows: PositiveInt = 4096
    """rows of a shard that tasks are made of at a time, when data.source is shards or hub; bounds a rank's memory"""
    pool_steps: PositiveInt = 1000
    """outer steps after the warm-up for which tasks are made of one pool of rows, before the next shard's"""
    inject: InjectConfig = InjectConfig()
    """sentences of your own"""

    @property
    def n_ways(self) -> tuple[int, int]:
        """The least and the most classes of a task."""
        return _as_range(self.n_way)

    @property
    def k_shots(self) -> tuple[int, int]:
        """The least and the most support contexts of a class."""
        return _as_range(self.k_shot)

    @property
    def has_ranges(self) -> bool:
        """Whether tasks differ in shape."""
        return self.n_ways[0] < self.n_ways[1] or self.k_shots[0] < self.k_shots[1]


def _as_range(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class MetaConfig(Section):
    """How tasks are learned from (docs/learners.md)."""

    learner: LearnerName = "fomaml"
    """fomaml: first-order MAML; anil, boil: the same with the head or the body alone adapted; reptile; meta_sgd: fomaml
    with learned inner rates; protonet, multitask: the query loss without an inner loop; masked_word: the vocabulary is
    predicted at the readout of the tasks' contexts; ar: no step on tasks"""
    head: Literal["prototype", "linear", "generated", "vocab"] = "prototype"
    """prototype: initialised from the support features of each task (ProtoMAML); linear: meta-learned weights;
    generated: written from the support features by a network (LEOPARD); vocab: an MLP to the vocabulary, restricted to
    the words of the task (pico-maml)"""
    adapt: str = "all"
    """weights of the decoder that the inner loop changes beside the head: all, head (none of them), last_<k>_blocks, or
    a regular expression over their names. The outer loop trains all weights; with meta.learner: reptile a meta step
    trains only these, and the weights that the first weights of the head depend on"""
    inner_lr: NonNegativeFloat = 0.02
    """SGD rate of the decoder's weights in the inner loop"""
    head_inner_lr: NonNegativeFloat = 1.0
    """SGD rate of the head's weights in the inner loop"""
    inner_steps: Annotated[int, Field(ge=0, le=10**6)] = 1
    """SGD steps on the support set; 0 trains the head's initialisation alone (a prototypical network); of no meaning to
    learners without an inner loop"""
    inner_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """momentum of the inner SGD"""
    inner_max_grad_norm: NonNegativeFloat = 0.0
    """largest norm of the inner gradients of a task together; 0 clips nothing"""
    multi_step_loss: bool = False
    """the query loss after every inner step counts, not after the last alone (MAML++)"""
    multi_step_loss_annealing_steps: NonNegativeInt = 0
    """outer steps after the warm-up in which these losses go from equal weights to the last alone; 0: equal for good"""
    learned_rates: Literal["tensor", "layer"] = "tensor"
    """what has a learned inner rate of its own under meta.learner: meta_sgd; the head has one in both"""
    vocab_head_layers: LayerCount = 4
    """linear layers of the vocab head, the one to the vocabulary included"""
    vocab_head_width: Width = 128
    """width of the vocab head's hidden layers"""
    vocab_head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of the vocab head's hidden units that are dropped in training"""
    tasks_per_step: Annotated[int, Field(ge=1, le=10**6)] = 8
    """tasks of one outer step over ALL ranks"""
    tasks_per_batch: PositiveInt | Literal["auto"] = "auto"
    """tasks of a rank that are computed together, each at its own weights, which takes the memory of as many; auto: on
    a GPU as many as take 8 GiB, on a CPU one by one"""
    feature_squared_norm: PositiveFloat = 4.0
    """squared length to which features are scaled before the head"""
