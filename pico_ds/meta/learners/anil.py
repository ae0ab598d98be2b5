"""Almost no inner loop."""

from pico_ds.meta.learners.fomaml import FOMAML


class ANIL(FOMAML):
    """FOMAML whose inner loop adapts the head alone, on features that are computed once.

    Source: Raghu et al. 2020, arXiv 1909.09157; pico-maml's inner loop.
    """

    @property
    def adapts(self) -> str:
        return "head"
