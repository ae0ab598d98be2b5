"""BOIL (body only update in the inner loop)."""

from pico_ds.meta.learners.fomaml import FOMAML


class BOIL(FOMAML):
    """FOMAML whose inner loop adapts the decoder but not the head.

    Source: Oh et al. 2021, arXiv 2008.08882.
    """

    adapts_head = False
