"""Computes this rank's part of the gradient and of the metrics of one outer step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pico_ds.config import RunConfig
from pico_ds.data.rows import TrainingRows
from pico_ds.engine.distributed import Process
from pico_ds.meta.episode_model import accuracy, displacement, task_loss
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.learners import EpisodeBatch, Learner, TaskOutcome
from pico_ds.meta.task_batching import batched, tasks_per_batch
from pico_ds.model.flops import context_flops, language_model_flops
from pico_ds.model.meta_model import DECODER
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.hybrid_schedule import StepKind
from pico_ds.tasks.task_shape import TaskShapes
from pico_ds.tasks.task_source import TaskSource
from pico_ds.training.prefetch import Batch, Prefetcher

#: metrics of every meta step, at the adapted weights
_QUERY_METRICS = ("meta/query_loss", "meta/query_accuracy")
#: metrics before and after adaptation to the same tasks. They cost two more forward passes and two more passes over the
#: weights per task, so they are computed only on some steps
_EXTRA_METRICS = (
    "meta/inner_gradient_norm",
    "meta/support_loss_before",
    "meta/support_accuracy_before",
    "meta/support_loss_after",
    "meta/support_accuracy_after",
    "meta/query_loss_before",
    "meta/query_accuracy_before",
    "meta/query_loss_after",
    "meta/query_accuracy_after",
    "meta/relative_displacement",
)


@dataclass
class LocalStepResult:
    """The result of one rank for one outer step.

    Attributes:
        gradient: this rank's part of the outer gradient; the MEAN over ranks is the gradient of the mean loss.
        contributions: this rank's part of each metric; the SUM over ranks is the metric. The keys are equal on every
            rank, even if a rank has no tasks.
        tokens, tasks, rows: summed over ALL ranks.
        flops: floating-point operations of the model on ALL ranks, without recomputation.
        data_wait_seconds: time for which this rank waited for its data [s].
    """

    gradient: dict[str, Tensor]
    contributions: dict[str, Tensor]
    tokens: int
    tasks: int
    rows: int
    flops: float
    data_wait_seconds: float = 0.0


class TrainStep:
    """Computes this rank's part of a meta step or an autoregressive step."""

    def __init__(
        self,
        config: RunConfig,
        network: FunctionalModel,
        learner: Learner,
        rows: TrainingRows,
        tasks: TaskSource | None,
        process: Process,
    ) -> None:
        self._config, self._network, self._learner = config, network, learner
        self._tasks, self._process = tasks, process
        self._prefetcher = Prefetcher(config, rows, tasks, process)
        vocab_size = network.skeleton.decoder.de_embedding_proj.out_features
        training, length = config.training, config.data.sequence_length
        self._tasks_per_batch = tasks_per_batch(config, network.skeleton, on_gpu=process.device.type == "cuda")
        # `_row_flops`: an autoregressive step on all ranks; `_context_flops`: one forward pass over one context
        self._row_flops = language_model_flops(config.model, vocab_size, training.global_batch_size, length)
        self._shapes = TaskShapes(config.smlmt, config.training.seed)
        self._context_flops = context_flops(config.model, vocab_size, tasks.sequence_length) if tasks else 0.0

    def compute(
        self, kind: StepKind, theta: Parameters, step: int, first_row: int, measure: bool, by_layer: bool
    ) -> LocalStepResult:
        """Return this rank's part of the gradient of a step at the weights `theta`, and of its metrics.

        Args:
            first_row: global position of the first row of the step.
            measure: also compute the metrics that need extra forward passes.
            by_layer: also compute weight norm and displacement of `learning_dynamics.layer_suffixes`.
        """
        batch, waited = self._prefetcher.take(step, first_row)
        if kind == "meta":
            local = self._tasks_step(theta, batch, step, measure, by_layer)
        else:
            local = self._rows_step(theta, batch)
        local.data_wait_seconds = waited
        if by_layer:
            for name, layer in self._layers(theta):
                local.contributions[f"layers/weight_norm/{layer}"] = (
                    theta[name].norm(dtype=torch.float32) / self._process.world_size
                )
        return local

    def _rows_step(self, theta: Parameters, batch: Batch) -> LocalStepResult:
        training = self._config.training
        count, length = training.global_batch_size, self._config.data.sequence_length
        assert batch.rows is not None
        rows = batch.rows.to(self._process.device, non_blocking=True)
        gradient, tokens = GradientSum(theta), count * length
        loss_sum = add_language_model_gradient(
            self._network,
            theta,
            rows,
            gradient,
            scale=self._process.world_size / tokens,
            micro_batch_size=training.micro_batch_size,
        )
        return LocalStepResult(
            gradient.result(), {"ar/loss": loss_sum / tokens}, tokens, tasks=0, rows=count, flops=self._row_flops
        )

    def _tasks_step(self, theta: Parameters, batch: Batch, step: int, measure: bool, by_layer: bool) -> LocalStepResult:
        assert self._tasks is not None
        config, process, meta_step = self._config.meta, self._process, step - self._config.smlmt.warmup_steps
        n_tasks = config.tasks_per_step
        gradient = GradientSum(theta)
        names = [*_QUERY_METRICS, *(_EXTRA_METRICS if measure else ())]
        names += [f"layers/displacement/{layer}" for _, layer in self._layers(theta)] if by_layer else []
        totals = {name: torch.zeros((), device=process.device) for name in names}
        episodes = [episode.to(process.device) for episode in batch.episodes]
        for episode in batched(episodes, self._tasks_per_batch):
            inputs = EpisodeBatch(self._network, theta, episode, self._tasks.readout, meta_step, measure or by_layer)
            outcome = self._learner.add_gradient(inputs, gradient, scale=process.world_size / n_tasks)
            query = _loss_and_accuracy(outcome.query_logits, episode.query)
            metrics = dict(zip(_QUERY_METRICS, query, strict=True))
            if measure:
                metrics |= self._extra_metrics(theta, episode, outcome, query)
            if by_layer:
                fast = outcome.adapted.fast
                assert fast is not None
                for name, layer in self._layers(fast):
                    metrics[f"layers/displacement/{layer}"] = displacement({name: theta[name]}, {name: fast[name]})
            for name, value in metrics.items():
                totals[name] += value.expand(episode.n_tasks or 1).sum() / n_tasks
            # free the adapted weights before the next batch of tasks allocates its own
            del outcome, metrics
        pass_counts = self._learner.pass_counts(meta_step)
        support, query_contexts = self._shapes.contexts(step, n_tasks)
        # some learners do not use the support set
        n_contexts = query_contexts + (support if pass_counts.support else 0)
        return LocalStepResult(
            gradient.result(),
            totals,
            tokens=n_contexts * self._tasks.sequence_length,
            tasks=n_tasks,
            rows=0,
            flops=self._context_flops * (support * pass_counts.support + query_contexts * pass_counts.query),
        )

    @torch.no_grad()
    def _extra_metrics(
        self, theta: Parameters, episode: Episode, outcome: TaskOutcome, query_after: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        assert self._tasks is not None
        adapted, head, readout = outcome.adapted, self._learner.head, self._tasks.readout
        assert adapted.fast is not None
        support_after = head.logits(adapted.head, self._network.features(adapted.leaves, episode.support, readout))
        query_before = head.logits(adapted.initial_head, self._network.features(theta, episode.query, readout))
        values = (
            adapted.first_gradient_norm,
            *_loss_and_accuracy(adapted.first_logits, episode.support),
            *_loss_and_accuracy(support_after, episode.support),
            *_loss_and_accuracy(query_before, episode.query),
            *query_after,
            displacement(theta, adapted.fast),
        )
        return dict(zip(_EXTRA_METRICS, values, strict=True))

    def _layers(self, parameters: Mapping[str, Tensor]) -> list[tuple[str, str]]:
        """Return (parameter, module path) of the layers that match `learning_dynamics.layer_suffixes`."""
        suffixes = tuple(f"{suffix}.weight" for suffix in self._config.learning_dynamics.layer_suffixes)
        return [
            (name, name.removeprefix(DECODER).removesuffix(".weight"))
            for name in parameters
            if name.startswith(DECODER) and name.endswith(suffixes)
        ]


def _loss_and_accuracy(logits: Tensor, contexts: Contexts) -> tuple[Tensor, Tensor]:
    return task_loss(logits, contexts.labels), accuracy(logits, contexts)
