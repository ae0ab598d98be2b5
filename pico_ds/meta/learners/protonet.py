"""Prototypical networks."""

from pico_ds.meta.learners.multitask import Multitask


class ProtoNet(Multitask):
    """The query loss of nearest-prototype classification: `Multitask` with the prototype head.

    Source: Snell et al. 2017, arXiv 1703.05175; on text, Li and Zhang 2021, MetaNLP.
    """
