"""Prediction of the masked word from the whole vocabulary."""

import torch

from pico_ds.config import Readout
from pico_ds.meta.gradient import GradientSum
from pico_ds.meta.inner_loop import Adapted
from pico_ds.meta.learners.base import Learner, TaskOutcome, Work
from pico_ds.meta.network import Network, Parameters
from pico_ds.meta.problem import Problem
from pico_ds.model.meta_model import OUTPUT_PROJECTION
from pico_ds.tasks.episode import Episode


class MaskedWord(Learner):
    """The control for the layout: the contexts of tasks, but no tasks.

    At the readout of every context, support and query alike, the model predicts the first token of the masked word by
    its own output projection. Class scores are those of the rows of the task's words.
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
        leaves = problem.leaves | {OUTPUT_PROJECTION: theta[OUTPUT_PROJECTION].detach().requires_grad_()}
        both, first = episode.support.followed_by(episode.query), episode.word_tokens[..., 0]
        states = network.readout_states(leaves, both, readout)
        targets = first.gather(-1, both.labels)
        # the mean over the contexts of each task
        loss = network.vocabulary_loss(leaves, states.flatten(0, -2), targets.flatten()) * scale / both.labels.shape[-1]
        total.add(leaves, torch.autograd.grad(loss, list(leaves.values())))
        with torch.no_grad():
            rows = theta[OUTPUT_PROJECTION][first].float()
            head = {"weight": rows, "bias": torch.zeros_like(rows[..., 0])}
            counts = [episode.support.labels.shape[-1], episode.query.labels.shape[-1]]
            of_support, of_query = (
                problem.scores(head, part, call=0) for part in network.scaled(states).split(counts, -2)
            )
        norm = torch.zeros_like(first[..., 0], dtype=torch.float32)
        fast = dict(problem.leaves) if measure else None
        return TaskOutcome(Adapted(problem.leaves, fast, head, head, of_support, norm), of_query)

    def work(self, step: int) -> Work:
        return Work(3, 3)
