"""Learners without an inner loop."""

import torch

from pico_ds.config import Readout
from pico_ds.meta.gradient import GradientSum
from pico_ds.meta.inner_loop import Adapted
from pico_ds.meta.learners.base import Learner, TaskOutcome, Work
from pico_ds.meta.network import Network, Parameters
from pico_ds.meta.problem import Problem, task_loss
from pico_ds.model.meta_model import HEAD
from pico_ds.tasks.episode import Episode


class Multitask(Learner):
    """The gradient of the query loss at the meta-parameters, where the head starts: the control without adaptation.

    Support and query of all tasks that are computed together go through the model in one forward pass; a head that does
    not read the support features does without the support set.
    """

    shares_weights = True

    @property
    def inner_steps(self) -> int:
        return 0

    def add_gradient(
        self,
        network: Network,
        theta: Parameters,
        episode: Episode,
        readout: Readout,
        total: GradientSum,
        scale: float,
        step: int = 0,
        measure: bool = True,
    ) -> TaskOutcome:
        problem = Problem.at(theta, network, self.head, episode, readout, training=True, shared=True)
        leaves, own = problem.leaves, problem.own
        support, query = episode.support, episode.query
        if self.head.reads_features:
            features = problem.features(leaves, support.followed_by(query))
            of_support, of_query = features.split([support.labels.shape[-1], query.labels.shape[-1]], dim=-2)
        else:
            of_query = problem.features(leaves, query)
            of_support = of_query[..., :0, :]
        head = self.head.start(own, of_support, episode)
        logits = problem.scores(head, of_query, call=0)
        loss = scale * task_loss(logits, query.labels).sum()
        gradients = torch.autograd.grad(loss, [*leaves.values(), *own.values()])
        total.add([*leaves, *(HEAD + name for name in own)], gradients)
        with torch.no_grad():
            if measure and not self.head.reads_features:
                of_support = problem.features(leaves, support)
            first_logits = problem.scores(head, of_support, call=0)
        norm = torch.zeros_like(support.labels[..., 0], dtype=torch.float32)
        fast = dict(leaves) if measure else None
        return TaskOutcome(Adapted(leaves, fast, head, head, first_logits, norm), logits.detach())

    def work(self, step: int) -> Work:
        return Work(3 if self.head.reads_features else 0, 3)
