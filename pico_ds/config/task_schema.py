"""The configuration sections of tasks and of learners."""

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
    """Your own sentences as training tasks."""

    path: str | None = None
    """JSONL file with `text` and `word`, or with `text` and `label`; null uses none"""
    ratio: Fraction = 0.5
    """share of the training tasks that are built from these sentences"""


class SmlmtConfig(Section):
    """Subset Masked Language Modeling Tasks (Bansal et al. 2020, arXiv 2009.08445)."""

    n_way: Annotated[int, Field(ge=2, le=10**9)] | IntRange = 5
    """classes (words) per task; a list [minimum, maximum] samples the number for each task"""
    k_shot: PositiveInt | IntRange = 5
    """support contexts per class; a list [minimum, maximum] samples the number for each task"""
    q_query: PositiveInt = 5
    """query contexts per class"""
    hybrid_ratio: Fraction = 0.5
    """probability that an outer step after the warm-up is a meta step; 0 trains only autoregressively"""
    warmup_steps: NonNegativeInt = 0
    """number of outer steps at the start of training that are all autoregressive"""
    context: Literal["window", "sentence"] = "window"
    """window: context_tokens tokens around the word. sentence: the sentence of the word, cut to context_tokens"""
    context_tokens: Annotated[int, Field(ge=4, le=2**24)] = 16
    """length of a window; a longer sentence is cut to it [tokens]"""
    readout: Readout = "fim"
    """position at which features are read. fim rotates the context to `suffix <sep> prefix [MASK]` and reads at the
    final [MASK]; fimpre rotates and reads one position earlier. The others do not rotate: mask reads at the [MASK], pre
    one position earlier, last at the last token, and mean averages over all tokens"""
    min_word_freq: PositiveInt = 50
    """minimum number of occurrences of a class word in the training documents, or in the pool of rows (smlmt.pool_rows)
    if data.source is shards or hub"""
    max_word_freq: PositiveInt = 10000
    """maximum number of occurrences of a class word, counted as for min_word_freq"""
    validation_word_fraction: Fraction = 0.1
    """share of the class words that are held out for validation tasks"""
    test_word_fraction: Fraction = 0.1
    """share of the class words that are held out for test tasks"""
    class_sampling: Literal["uniform", "frequency", "cluster"] = "uniform"
    """how the words of a training task are sampled: uniformly, in proportion to their frequency, or from a cluster of
    words that occur in similar contexts and are hard to tell apart"""
    cluster_size: PositiveInt = 30
    """number of nearest neighbors of the first word from which the other words are sampled, if class_sampling is
    cluster"""
    curriculum_steps: NonNegativeInt = 0
    """outer steps after the warm-up during which training tasks become harder: n_way rises from its minimum, k_shot
    falls from its maximum, and classes change from uniform to class_sampling; 0 trains at full difficulty from the
    start"""
    pool_rows: PositiveInt = 4096
    """number of rows of a shard in one pool, from which tasks are built, if data.source is shards or hub; bounds the
    memory of a rank"""
    pool_steps: PositiveInt = 1000
    """number of outer steps, counted from the end of the warm-up, for which tasks come from one pool before the pool of
    the next shard is used"""
    inject: InjectConfig = InjectConfig()
    """your own sentences as training tasks"""

    @property
    def n_ways(self) -> tuple[int, int]:
        """Minimum and maximum number of classes of a task."""
        return _as_range(self.n_way)

    @property
    def k_shots(self) -> tuple[int, int]:
        """Minimum and maximum number of support contexts of a class."""
        return _as_range(self.k_shot)

    @property
    def has_ranges(self) -> bool:
        """Whether tasks have different shapes."""
        return self.n_ways[0] < self.n_ways[1] or self.k_shots[0] < self.k_shots[1]


def _as_range(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class MetaConfig(Section):
    """How the model learns from tasks (docs/learners.md)."""

    learner: LearnerName = "fomaml"
    """learning algorithm. fomaml: first-order MAML. anil, boil: FOMAML that adapts only the head, or only the body.
    reptile: moves the weights towards the adapted weights. meta_sgd: FOMAML with learned inner learning rates.
    protonet, multitask: the query loss without an inner loop. masked_word: predicts the masked words of the tasks over
    the whole vocabulary. ar: no meta steps"""
    head: Literal["prototype", "linear", "generated", "vocab"] = "prototype"
    """prototype: initialised from the support features of each task (ProtoMAML). linear: meta-learned weights.
    generated: computed from the support features by a network (LEOPARD). vocab: an MLP to the vocabulary, restricted to
    the words of the task (pico-maml)"""
    adapt: str = "all"
    """decoder weights that the inner loop changes in addition to the head: all, head (none of them), last_<k>_blocks,
    or a regular expression that matches their names. The outer loop trains all weights; with meta.learner: reptile a
    meta step trains only the adapted weights and the weights on which the initial head depends"""
    inner_lr: NonNegativeFloat = 0.02
    """SGD learning rate of the decoder's weights in the inner loop"""
    head_inner_lr: NonNegativeFloat = 1.0
    """SGD learning rate of the head's weights in the inner loop"""
    inner_steps: Annotated[int, Field(ge=0, le=10**6)] = 1
    """SGD steps on the support set; 0 trains only the initialisation of the head (a prototypical network if meta.head
    is prototype); ignored in training by learners without an inner loop"""
    inner_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """momentum of the inner SGD"""
    inner_max_grad_norm: NonNegativeFloat = 0.0
    """norm, over all adapted weights, to which the inner gradient of a task is clipped; 0 disables clipping"""
    multi_step_loss: bool = False
    """whether the outer loss includes the query loss after every inner step (MAML++), not only after the last"""
    multi_step_loss_annealing_steps: NonNegativeInt = 0
    """outer steps after the warm-up during which the weights of these losses shift from equal to only the last; 0 keeps
    them equal"""
    learned_rates: Literal["tensor", "layer"] = "tensor"
    """whether meta.learner: meta_sgd learns one inner learning rate for each tensor, or one for each layer. The head
    always has its own rate"""
    vocab_head_layers: LayerCount = 4
    """number of linear layers of the vocab head, including the layer to the vocabulary"""
    vocab_head_width: Width = 128
    """width of the vocab head's hidden layers"""
    vocab_head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """dropout probability of the vocab head's hidden units in training"""
    tasks_per_step: Annotated[int, Field(ge=1, le=10**6)] = 8
    """number of tasks in one meta step, over ALL ranks"""
    tasks_per_batch: PositiveInt | Literal["auto"] = "auto"
    """number of tasks that a rank computes together, each with its own fast weights; memory grows in proportion. auto:
    as many as fit into 8 GiB, but 1 if tasks have fast weights and training runs on a CPU, with training.compile: block
    or with training.activation_checkpointing"""
    feature_squared_norm: PositiveFloat = 4.0
    """squared norm to which features are scaled before the head"""
