"""Measures of adaptation on fixed tasks, by layer and by inner step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from pico_ds.dynamics.activations import record_outputs
from pico_ds.dynamics.matrix_measures import proportional_effective_rank, singular_values
from pico_ds.engine.distributed import Process
from pico_ds.meta.episode_model import accuracy, displacement, task_loss
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.heads import HeadWeights
from pico_ds.meta.inner_loop import AdaptedWeights
from pico_ds.meta.learners import EpisodeBatch, Learner
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.task_source import TaskSource


@dataclass(frozen=True)
class AdaptationProbe:
    """Measures the adaptation to tasks 0 to n_tasks - 1 of step 0.

    Attributes:
        network: not compiled.
        steps: number of inner steps. There are steps + 1 moments: the start, and the state after each step.
        layers: parameter names by module path.
        on_progress: called at every moment.
    """

    network: FunctionalModel
    learner: Learner
    tasks: TaskSource
    n_tasks: int
    steps: int
    layers: Mapping[str, str]
    process: Process
    on_progress: Callable[[], None] = lambda: None

    def observe(self, theta: Parameters) -> dict[str, Tensor]:
        """Return all records by name, fp32, on every rank. A collective; the world size does not change the result.

        Returns:
            `support_loss`, `support_accuracy`, `query_loss`, `query_accuracy`: `[tasks, moments]`.
            `displacement.<layer>`: ||fast - theta|| / ||theta||, `[tasks, moments]`.
            `gradient_cosine.<layer>`: cosine of the support gradient and the query gradient, `[tasks, moments]`.
            `activations_before.<layer>`, `activations_after.<layer>`: activations of the query contexts at their
            readout, before and after adaptation, `[tasks, contexts, width]`.
            `update_effective_rank.<layer>`: proportional effective rank of fast - theta after the last step, `[tasks]`;
            nan if the weight did not change.
        """
        local_indices = range(self.process.rank, self.n_tasks, self.process.world_size)
        records: dict[str, Tensor] = {}
        # a rank without a task measures task 0 to get the shapes, and contributes zeros
        for index in local_indices or range(1):
            task_records = self._measure_task(theta, self.tasks.sample(step=0, index=index).to(self.process.device))
            for name, value in task_records.items():
                if name not in records:
                    records[name] = torch.zeros(self.n_tasks, *value.shape, device=self.process.device)
                if local_indices:
                    records[name][index] = value
        return {name: self.process.sum_over_ranks(values) for name, values in records.items()}

    def _measure_task(self, theta: Parameters, episode: Episode) -> dict[str, Tensor]:
        moments: list[dict[str, Tensor]] = []

        def measure_at(body: Parameters, head: HeadWeights, fast: Parameters) -> None:
            moments.append(self._measure_moment(theta, body, head, fast, episode))

        def after_step(count: int, adapted: AdaptedWeights) -> None:
            assert adapted.fast is not None
            measure_at(adapted.leaves, adapted.head, adapted.fast)

        batch = EpisodeBatch(self.network, theta, episode, self.tasks.readout)
        adapted = self.learner.adapt(batch, self.steps, after_step)
        assert adapted.fast is not None
        if self.steps:
            measure_at(adapted.leaves, adapted.head, adapted.fast)
        # the start is measured last, because only adapt() returns the initial head
        measure_at(theta, adapted.initial_head, theta)
        moments.insert(0, moments.pop())
        records = {name: torch.stack([moment[name] for moment in moments]) for name in moments[0]}
        for path, name in self.layers.items():
            update = adapted.fast[name].float() - theta[name].float() if name in adapted.fast else None
            records[f"update_effective_rank.{path}"] = _effective_rank(update, theta[name].device)
        for when, body in (("before", theta), ("after", adapted.leaves)):
            outputs = self._query_activations({**theta, **body}, episode.query)
            records |= {f"activations_{when}.{path}": values for path, values in outputs.items()}
        return records

    def _measure_moment(
        self, theta: Parameters, body: Parameters, head: HeadWeights, fast: Parameters, episode: Episode
    ) -> dict[str, Tensor]:
        """Return the records of one moment of the inner loop.

        The backward pass moves the gradient of each layer to the host as soon as it is computed. The support gradients
        are kept in host memory until the query gradients arrive.
        """
        self.on_progress()
        records: dict[str, Tensor] = {}
        leaves = {path: body.get(name, theta[name]).detach().requires_grad_() for path, name in self.layers.items()}
        weights = {
            **theta,
            **{name: weight.detach() for name, weight in body.items()},
            **{name: leaves[path] for path, name in self.layers.items()},
        }
        fixed_head = {name: weight.detach() for name, weight in head.items()}
        support_gradients: dict[str, Tensor] = {}

        def on_gradient(leaf: Tensor, path: str) -> None:
            assert leaf.grad is not None
            gradient, leaf.grad = leaf.grad.to("cpu", torch.float32, copy=True), None
            if path in support_gradients:
                records[f"gradient_cosine.{path}"] = _cosine(support_gradients.pop(path), gradient)
            else:
                support_gradients[path] = gradient

        for path, leaf in leaves.items():
            leaf.register_post_accumulate_grad_hook(partial(on_gradient, path=path))
        for part, contexts in (("support", episode.support), ("query", episode.query)):
            logits = self.learner.head.logits(fixed_head, self.network.features(weights, contexts, self.tasks.readout))
            loss = task_loss(logits, contexts.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            records[f"{part}_loss"], records[f"{part}_accuracy"] = loss.detach(), accuracy(logits.detach(), contexts)
        for path, name in self.layers.items():
            # reinsert in layer order: the backward pass inserted in reverse
            records[f"gradient_cosine.{path}"] = records.pop(f"gradient_cosine.{path}")
            records[f"displacement.{path}"] = displacement({name: theta[name]}, {name: fast.get(name, theta[name])})
        return records

    @torch.no_grad()
    def _query_activations(self, weights: Parameters, contexts: Contexts) -> dict[str, Float[Tensor, "contexts width"]]:
        """Return the outputs of the modules at the readout of each context."""
        readout = self.tasks.readout
        with record_outputs(self.network.skeleton.decoder, self.layers) as outputs:
            self.network.hidden(weights, contexts.input_ids)
        return {path: self.network.at_readout(outputs[path], contexts, readout) for path in self.layers}


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine similarity; nan if a gradient is zero."""
    a, b = first.flatten(), second.flatten()
    return a.dot(b) / (a.norm() * b.norm())


def _effective_rank(update: Tensor | None, device: torch.device) -> Tensor:
    if update is None or update.ndim != 2:
        return torch.full((), torch.nan, device=device)
    return torch.tensor(proportional_effective_rank(singular_values(update)), device=device)
