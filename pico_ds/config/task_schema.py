"""The configuration section of tasks."""

from typing import Annotated, Literal

from pydantic import Field

from pico_ds.config.field_types import (
    Fraction,
    IntRange,
    NonNegativeInt,
    PositiveInt,
    Readout,
    Section,
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
