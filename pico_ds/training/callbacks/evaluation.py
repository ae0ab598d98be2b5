"""Runs evaluations during training and at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pico_ds.config import ConfigError
from pico_ds.errors import describe_os_error
from pico_ds.evaluation.evaluator import EvaluationResult, Evaluator
from pico_ds.evaluation.few_shot import Estimate
from pico_ds.meta.functional_model import Parameters
from pico_ds.monitoring.run_log import logger
from pico_ds.monitoring.trackers import Tracker
from pico_ds.runs.run_directory import RunDirectory
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.step_metrics import StepMetrics

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer


class Evaluation(Callback):
    """Evaluates the untrained model, then after the warm-up, every `evaluation.every_n_steps`, and at the end.

    Untrained weights that depend only on the seed are evaluated last, so that training starts without a delay. The
    weights of `model.init_from` are evaluated first, because their source may no longer exist at the end.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        initial_parameters: Callable[[], Parameters],
        run: RunDirectory,
        trackers: list[Tracker],
        should_continue: Callable[[], bool],
    ) -> None:
        """
        Args:
            initial_parameters: returns the untrained weights.
            should_continue: called often during an evaluation. If it returns False on any rank, the evaluation stops.
        """
        self._evaluator, self._initial_parameters = evaluator, initial_parameters
        self._run, self._trackers, self._should_continue = run, trackers, should_continue
        self._done: set[int] = set()
        self._unwritten: list[EvaluationResult] = []
        self.results: dict[int, EvaluationResult] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the steps that were evaluated."""
        return {"done": sorted(self._done)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the evaluated steps, and read their results for the final report."""
        self._done = set(state["done"])
        for step in state["done"]:
            path = self._run.eval_results / f"step_{step}.json"
            if not path.exists():
                continue
            try:
                self.results[step] = EvaluationResult.read(path)
            except (ValueError, KeyError, TypeError, OSError) as error:
                logger.warning("warning: %s is missing from the final report: it cannot be read (%s)", path, error)

    def on_train_start(self, trainer: Trainer) -> None:
        """Run the evaluation that is due at the resume step, or evaluate the weights of `model.init_from`."""
        if trainer.state.step:
            self._evaluate_if_due(trainer)
        elif trainer.config.model.init_from is not None:
            self._evaluate(trainer, 0, trainer.engine.full_parameters)

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Evaluate if the step is due. A run that must stop evaluates when it resumes."""
        if not trainer.stopping:
            self._evaluate_if_due(trainer)

    def _evaluate_if_due(self, trainer: Trainer) -> None:
        step, config = trainer.state.step, trainer.config
        every = config.evaluation.every_n_steps
        after_warmup = config.meta_ratio > 0 and step == config.smlmt.warmup_steps
        if after_warmup or (every is not None and step % every == 0):
            self._evaluate(trainer, step, trainer.engine.full_parameters)

    def on_train_end(self, trainer: Trainer) -> None:
        """Evaluate the final weights and the untrained model."""
        self._evaluate(trainer, trainer.state.step, trainer.engine.full_parameters)
        if 0 in self._done or trainer.stopping:
            return
        # with model.init_from this happens only after a resume from a checkpoint without the evaluation of step 0
        initial, problem = None, "see the output of the other ranks"
        try:
            initial = self._initial_parameters()
        except ConfigError as error:
            problem = str(error)
        if trainer.engine.process.any_rank(initial is None):
            logger.warning("warning: the untrained model is missing from the final report: %s", problem)
            return
        assert initial is not None
        self._evaluate(trainer, 0, lambda: initial)

    def _evaluate(self, trainer: Trainer, step: int, parameters: Callable[[], Parameters]) -> None:
        if step in self._done or trainer.stopping:
            return
        trainer.synchronize()
        logger.info("evaluating step %d", step)
        result = self._evaluator.evaluate(parameters(), step, self._should_continue)
        if result is None:
            logger.info("the evaluation of step %d was interrupted; it runs again when the run resumes", step)
            trainer.stopping = True
            return
        self._done.add(step)
        self.results[step] = result
        if not trainer.engine.process.is_main:
            return
        if step:
            for tracker in self._trackers:
                tracker.log(step, _tracker_metrics(result, trainer.config.evaluation.word_split))
        self._unwritten.append(result)
        self._write()

    def on_exit(self) -> None:
        """Write the results that could not be written before."""
        self._write()

    def _write(self) -> None:
        """Write the results. If this fails, the next evaluation or the end of the run tries again."""
        try:
            while self._unwritten:
                self._unwritten[0].write(self._run.eval_results)
                self._unwritten.pop(0)
        except OSError as error:
            steps = ", ".join(str(result.step) for result in self._unwritten)
            logger.warning(
                "warning: the evaluation of step %s cannot be written yet: %s", steps, describe_os_error(error)
            )


def _tracker_metrics(result: EvaluationResult, word_split: str) -> dict[str, float]:
    metrics = {} if result.validation_loss is None else {"eval/validation_loss": result.validation_loss}
    if result.perplexity is not None:
        metrics["eval/perplexity"] = result.perplexity.total.perplexity
        metrics |= {
            f"eval/perplexity/{domain}": score.perplexity for domain, score in result.perplexity.by_domain.items()
        }
    for readout, found in result.few_shot.items():
        metrics[f"eval/few_shot/{word_split}/{readout}/accuracy_before"] = Estimate.of(found.before).mean
        metrics[f"eval/few_shot/{word_split}/{readout}/accuracy_after"] = Estimate.of(found.after).mean
    return metrics
