"""Learners without an inner loop."""

import torch

from pico_ds.meta.episode_model import task_loss
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.learners.base import EpisodeBatch, PassCounts, TaskOutcome, WithoutInnerLoop
from pico_ds.model.meta_model import HEAD


class Multitask(WithoutInnerLoop):
    """A control without adaptation: the gradient of the query loss at the meta-parameters, with the initial head.

    The support and query contexts of all tasks of a batch go through the model in one forward pass. If the head does
    not read the support features, the forward pass does not include the support set.
    """

    def add_gradient(self, batch: EpisodeBatch, total: GradientSum, scale: float) -> TaskOutcome:
        episode, model = batch.episode, batch.model(self.head, shared=True)
        leaves, own = model.leaves, model.own
        support, query = episode.support, episode.query
        if self.head.reads_features:
            features = model.features(leaves, support.followed_by(query))
            support_features, query_features = features.split(
                [support.labels.shape[-1], query.labels.shape[-1]], dim=-2
            )
        else:
            query_features = model.features(leaves, query)
            support_features = query_features[..., :0, :]
        head = self.head.start(own, support_features, episode)
        logits = model.scores(head, query_features, call=0)
        loss = scale * task_loss(logits, query.labels).sum()
        gradients = torch.autograd.grad(loss, [*leaves.values(), *own.values()])
        total.add([*leaves, *(HEAD + name for name in own)], gradients)
        with torch.no_grad():
            if batch.measure and not self.head.reads_features:
                support_features = model.features(leaves, support)
            first_logits = model.scores(head, support_features, call=0)
        return self.outcome(model, head, first_logits, logits, batch.measure)

    def pass_counts(self, step: int) -> PassCounts:
        return PassCounts(3 if self.head.reads_features else 0, 3)
