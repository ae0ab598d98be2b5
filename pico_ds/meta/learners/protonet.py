"""Prototypical networks."""

from pico_ds.meta.learners.multitask import Multitask


class ProtoNet(Multitask):
    """Prototypical network: `Multitask` with the prototype head.

    Source: Snell et al. 2017, arXiv 1703.05175; on text, Li and Zhang 2021, MetaNLP.
    """
