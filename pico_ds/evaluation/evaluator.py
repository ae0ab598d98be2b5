"""Runs all evaluations of a training run, and reads and writes their results."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pico_ds.config import Readout, RunConfig
from pico_ds.data.keyed_random import digest64
from pico_ds.data.rows import Rows
from pico_ds.engine.distributed import Process
from pico_ds.evaluation.few_shot import Estimate, FewShotResult, evaluate_few_shot
from pico_ds.evaluation.perplexity import PerplexityDataset, PerplexityResult, evaluate_perplexity
from pico_ds.evaluation.validation_loss import evaluate_validation_loss
from pico_ds.file_writing import replace_text
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.learners import Learner
from pico_ds.tasks.index.class_words import WordSplit
from pico_ds.tasks.masked_word_tasks import SMLMT, TASKS_VERSION
from pico_ds.tasks.task_builder import evaluation_settings


@dataclass(frozen=True)
class EvaluationResult:
    """Results of one evaluation of the model.

    Attributes:
        step: number of outer steps before the evaluation.
        validation_loss: nats per token; None if it is not evaluated.
        few_shot: accuracies by readout.
        task_key: equal for evaluations on identical tasks.
        perplexity: on the texts of evaluation.perplexity; None if there are none.
    """

    step: int
    validation_loss: float | None
    few_shot: dict[Readout, FewShotResult]
    task_key: str
    perplexity: PerplexityResult | None = None

    def write(self, directory: Path) -> Path:
        """Write `step_<N>.json`: means with 95 % intervals, and the accuracy of every task."""
        path = directory / f"step_{self.step}.json"
        summary = {
            readout: [{"steps": step, **Estimate.of(values).to_json()} for step, values in enumerate(result.by_step)]
            for readout, result in self.few_shot.items()
        }
        perplexity = self.perplexity and self.perplexity.to_json()
        content = {**asdict(self), "perplexity": perplexity, "few_shot_summary": summary}
        replace_text(path, json.dumps(content, indent=1) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> "EvaluationResult":
        """Read a result that `write` wrote."""
        content = json.loads(path.read_text())
        few_shot = {readout: FewShotResult(**result) for readout, result in content["few_shot"].items()}
        perplexity = content.get("perplexity") and PerplexityResult.from_json(content["perplexity"])
        return cls(content["step"], content["validation_loss"], few_shot, content["task_key"], perplexity)


class Evaluator:
    """Computes validation loss, perplexity and few-shot accuracy on held-out words in held-out documents."""

    def __init__(
        self,
        config: RunConfig,
        network: FunctionalModel,
        learner: Learner,
        rows: Rows | None,
        tasks: list[SMLMT],
        perplexity_dataset: PerplexityDataset | None,
        process: Process,
    ) -> None:
        """
        Args:
            rows: validation rows, or None to skip the validation loss.
            tasks: the held-out tasks, once for each readout.
            perplexity_dataset: the texts, or None to skip perplexity.
        """
        self._config, self._network, self._learner = config, network, learner
        self._rows, self._tasks, self._perplexity_dataset, self._process = rows, tasks, perplexity_dataset, process

    def evaluate(self, theta: Parameters, step: int, should_continue: Callable[[], bool]) -> EvaluationResult | None:
        """Evaluate the parameters. A collective: every rank must call it, and every rank gets the result.

        Args:
            should_continue: called before every task and batch of rows. Once it returns False, it must not return True.

        Returns:
            None if `should_continue` returned False on any rank.
        """
        settings, loss, perplexity = self._config.evaluation, None, None
        micro_batch_size = self._config.training.micro_batch_size
        if self._rows is not None:
            loss = evaluate_validation_loss(
                self._network,
                theta,
                self._rows,
                settings.n_rows,
                micro_batch_size,
                self._process,
                should_continue,
            )
        if self._perplexity_dataset is not None:
            perplexity = evaluate_perplexity(
                self._network, theta, self._perplexity_dataset, micro_batch_size, self._process, should_continue
            )
        few_shot = {}
        for tasks in self._tasks:
            few_shot[tasks.readout] = evaluate_few_shot(
                self._network,
                self._learner,
                theta,
                tasks,
                settings.n_tasks,
                settings.adaptation_steps,
                self._process,
                should_continue,
            )
        if self._process.any_rank(not should_continue()):
            return None
        return EvaluationResult(step, loss, few_shot, task_key(self._config), perplexity)


def task_key(config: RunConfig) -> str:
    """Return a digest of every setting that determines the evaluation tasks.

    The digest does not depend on the readout, which changes only the layout of the contexts.
    """
    return _digest_of_tasks(config, config.evaluation.word_split, set())


def grid_key(config: RunConfig, split: WordSplit) -> str:
    """Return a digest of every setting that determines the tasks of a word split, except the shape of the tasks."""
    return _digest_of_tasks(config, split, {"n_way", "k_shot", "q_query"})


def _digest_of_tasks(config: RunConfig, split: WordSplit, excluded: set[str]) -> str:
    corpus = config.data.model_dump(exclude={"cache_dir", "sequence_length"})
    training_only = {"readout", "hybrid_ratio", "warmup_steps", "cluster_size", "inject"}
    tasks = evaluation_settings(config.smlmt).model_dump(exclude=training_only | excluded)
    return f"{digest64(repr((TASKS_VERSION, corpus, tasks, split))):016x}"
