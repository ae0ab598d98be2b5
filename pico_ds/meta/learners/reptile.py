"""Reptile."""

from dataclasses import replace

import torch

from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.inner_loop import adapt
from pico_ds.meta.learners.base import EpisodeBatch, Learner, PassCounts, TaskOutcome, over_tasks
from pico_ds.meta.learners.fomaml import add_gradient_through_start
from pico_ds.model.meta_model import HEAD


class Reptile(Learner):
    """Reptile: the outer gradient is (theta - phi) / inner_lr for the adapted weights phi.

    This quotient equals the sum of the inner gradients. The code sums the gradients, because the difference of two
    nearly equal weights would be dominated by rounding. The inner loop alternates between the support and the query
    set, because Reptile learns from the agreement between gradients of different mini-batches; it needs at least two
    inner steps. The head's part is differentiated through its initial weights, as in FOMAML.

    Source: Nichol et al. 2018, arXiv 1803.02999, sections 3 and 5.
    """

    def add_gradient(self, batch: EpisodeBatch, total: GradientSum, scale: float) -> TaskOutcome:
        episode, model = batch.episode, batch.model(self.head)
        spec = replace(
            self.inner_loop(batch.theta),
            alternates=True,
            keeps_sums=True,
            keeps_graph=self.head.reads_features,
            measure=batch.measure,
        )
        adapted = adapt(model, spec)
        with torch.no_grad():
            logits = model.logits(adapted.leaves, adapted.head, episode.query, call=self.inner_steps)
            torch._foreach_mul_(list(adapted.gradient_sums.values()), scale)
        body = {name: adapted.gradient_sums.pop(name) for name in self.adapted}
        total.add(body, over_tasks(body.values(), episode.n_tasks))
        of_head = {name.removeprefix(HEAD): gradient for name, gradient in adapted.gradient_sums.items()}
        add_gradient_through_start(model, adapted.initial_head, of_head, total)
        return TaskOutcome(adapted, logits)

    def pass_counts(self, step: int) -> PassCounts:
        support, query = (self.inner_steps + 1) // 2, self.inner_steps // 2
        through = 2 if self.head.reads_features else 0
        if not self.adapted:
            return PassCounts(1 + through, 1)
        return PassCounts(3 * support + through, 3 * query + 1)
