"""ANIL (almost no inner loop)."""

from pico_ds.meta.learners.fomaml import FOMAML


class ANIL(FOMAML):
    """FOMAML whose inner loop adapts only the head. The features are computed once per task.

    Source: Raghu et al. 2020, arXiv 1909.09157; pico-maml's inner loop.
    """

    @property
    def adapts(self) -> str:
        return "head"
