"""Masked-word prediction over the whole vocabulary."""

import torch

from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.learners.base import EpisodeBatch, PassCounts, TaskOutcome, WithoutInnerLoop
from pico_ds.model.meta_model import OUTPUT_PROJECTION


class MaskedWord(WithoutInnerLoop):
    """A control that trains on the contexts of tasks without forming tasks.

    At the readout of every support and query context, the model predicts the first token of the masked word with its
    output projection. The class scores use the output rows of the task's words.
    """

    def add_gradient(self, batch: EpisodeBatch, total: GradientSum, scale: float) -> TaskOutcome:
        theta, network, episode = batch.theta, batch.network, batch.episode
        model = batch.model(self.head, shared=True)
        leaves = model.leaves | {OUTPUT_PROJECTION: theta[OUTPUT_PROJECTION].detach().requires_grad_()}
        contexts, first = episode.support.followed_by(episode.query), episode.word_tokens[..., 0]
        states = network.readout_states(leaves, contexts, batch.readout)
        targets = first.gather(-1, contexts.labels)
        # the mean over the contexts of each task
        loss = (
            network.vocabulary_loss(leaves, states.flatten(0, -2), targets.flatten())
            * scale
            / contexts.labels.shape[-1]
        )
        total.add(leaves, torch.autograd.grad(loss, list(leaves.values())))
        with torch.no_grad():
            rows = theta[OUTPUT_PROJECTION][first].float()
            head = {"weight": rows, "bias": torch.zeros_like(rows[..., 0])}
            scores = model.scores(head, network.scaled(states), call=0)
        support_scores, query_scores = scores.split(
            [part.labels.shape[-1] for part in (episode.support, episode.query)], -2
        )
        return self.outcome(model, head, support_scores, query_scores, batch.measure)

    def pass_counts(self, step: int) -> PassCounts:
        return PassCounts(3, 3)
