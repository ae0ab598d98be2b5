"""First-order MAML."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pico_ds.meta.episode_model import EpisodeModel, task_loss
from pico_ds.meta.functional_model import Parameters
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.heads import HeadWeights
from pico_ds.meta.inner_loop import AdaptedWeights, adapt
from pico_ds.meta.learners.base import EpisodeBatch, Learner, PassCounts, TaskOutcome, over_tasks
from pico_ds.model.meta_model import HEAD

#: number of the first query pass, which keys its dropout; support passes are numbered from 0
_QUERY_CALLS = 1 << 10


class FOMAML(Learner):
    """First-order MAML: the outer gradient is the gradient of the query loss at the adapted weights.

    For adapted weights phi and an adapted head h, FOMAML (Finn et al. 2017, arXiv 1703.03400, section 5.2) uses
    d L_query(phi, h) / d phi for the decoder. The head's initial weights h_0(theta) are differentiated exactly, and the
    inner updates of the head are treated as constants:

        outer = d L_query / d phi + (d h_0 / d theta)^T d L_query / d h

    With inner_steps = 0 and the prototype head, this is the exact gradient of a prototypical network. With
    `meta.multi_step_loss`, the outer gradient is a weighted sum over the weights after every inner step (Antoniou et
    al. 2019, MAML++, arXiv 1810.09502, section 4).
    """

    has_step_losses = True
    #: whether the outer gradient needs the adapted weights in fp32
    needs_fast = False

    def add_gradient(self, batch: EpisodeBatch, total: GradientSum, scale: float) -> TaskOutcome:
        theta, episode, model = batch.theta, batch.episode, batch.model(self.head)
        weights = self.query_weights(batch.step)
        of_head: HeadWeights = {}

        def add_query_gradient(count: int, adapted: AdaptedWeights) -> Tensor:
            """Add the gradient of the query loss after `count` inner steps."""
            logits = model.logits(adapted.leaves, adapted.head, episode.query, _QUERY_CALLS + count)
            # scale the loss and not the gradients, which are as large as the model
            loss = scale * weights[count] * task_loss(logits, episode.query.labels).sum()
            gradients = torch.autograd.grad(loss, [*adapted.leaves.values(), *adapted.head.values()])
            body = dict(zip(adapted.leaves, gradients, strict=False))
            head = dict(zip(adapted.head, gradients[len(body) :], strict=True))
            del gradients
            for name, gradient in head.items():
                of_head[name] = of_head[name] + gradient if name in of_head else gradient
            self.add_own_gradient(theta, adapted, body, head, total)
            total.add(body, over_tasks(body.values(), episode.n_tasks))
            return logits.detach()

        def after_step(count: int, adapted: AdaptedWeights) -> None:
            if weights[count]:
                add_query_gradient(count, adapted)

        spec = replace(
            self.inner_loop(theta),
            keeps_graph=self.head.reads_features,
            measure=batch.measure or self.needs_fast,
        )
        adapted = adapt(model, spec, after_step if any(weights[:-1]) else None)
        logits = add_query_gradient(self.inner_steps, adapted)
        add_gradient_through_start(model, adapted.initial_head, of_head, total)
        return TaskOutcome(adapted, logits)

    def query_weights(self, step: int) -> list[float]:
        """Return the weights of the query losses after 0, 1, ..., inner_steps inner steps.

        With `meta.multi_step_loss`, the weights are equal at first. Over `meta.multi_step_loss_annealing_steps` outer
        steps they move to the last inner step.
        """
        count = self.inner_steps
        if not self.config.multi_step_loss or count == 0:
            return [0.0] * count + [1.0]
        annealing = self.config.multi_step_loss_annealing_steps
        left = max(0.0, 1 - step / annealing) if annealing else 1.0
        return [0.0, *[left / count] * (count - 1), 1 - left * (count - 1) / count]

    def add_own_gradient(
        self,
        theta: Parameters,
        adapted: AdaptedWeights,
        body: Mapping[str, Tensor],
        head: Mapping[str, Tensor],
        total: GradientSum,
    ) -> None:
        """Add the gradient of the learner's own parameters, computed from the gradient of the query loss."""

    def pass_counts(self, step: int) -> PassCounts:
        # one forward and one backward pass per inner step; a single forward pass if only the head is adapted
        inner = 3 * self.inner_steps if self.adapted else 1
        through = 2 if self.head.reads_features else 0
        return PassCounts(max(inner, 1) + through, 3 * sum(weight > 0 for weight in self.query_weights(step)))


def add_gradient_through_start(
    model: EpisodeModel, initial_head: HeadWeights, of_head: Mapping[str, Tensor], total: GradientSum
) -> None:
    """Add (d h_0 / d theta)^T times the gradient with respect to the head."""
    leaves = model.leaves if model.head.reads_features else {}
    through = torch.autograd.grad(
        [initial_head[name] for name in of_head],
        [*leaves.values(), *model.own.values()],
        grad_outputs=list(of_head.values()),
    )
    total.add(leaves, over_tasks(through[: len(leaves)], model.episode.n_tasks))
    total.add([HEAD + name for name in model.own], through[len(leaves) :])
