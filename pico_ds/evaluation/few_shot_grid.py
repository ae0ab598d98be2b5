"""Few-shot accuracy of a model and of baselines, on tasks of several shapes."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pico_ds.config import Readout, RunConfig
from pico_ds.data.keyed_random import digest64
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.engine.distributed import Process
from pico_ds.errors import TaskError
from pico_ds.evaluation.baselines import frozen_feature_accuracies, tfidf_accuracies
from pico_ds.evaluation.context_shortcuts import lengths_only_accuracy
from pico_ds.evaluation.few_shot import Estimate, adaptation_curve, check_n_way
from pico_ds.file_writing import replace_text
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.meta.learners import Learner
from pico_ds.progress import track
from pico_ds.tasks.context_sampling import Documents
from pico_ds.tasks.task_shape import TaskShape
from pico_ds.tasks.task_source import TaskSource

CHANCE, LENGTHS_ONLY = "chance", "lengths only, logistic regression"
#: overrides that can be part of a file name unchanged
_FILE_NAME_SAFE = re.compile(r"[\w.=+-]{1,80}")


@dataclass(frozen=True)
class Model:
    """A trained model to evaluate.

    Attributes:
        theta: the trained parameters.
        make_untrained: returns the parameters before training.
        initial_name: name of the parameters before training, which may come from a pretrained model.
    """

    network: FunctionalModel
    learner: Learner
    theta: Parameters
    make_untrained: Callable[[], Parameters]
    tokenizer: TextTokenizer
    initial_name: str = "untrained"

    @cached_property
    def untrained(self) -> Parameters:
        """The parameters before training, created on first use because some evaluations do not need them."""
        return self.make_untrained()


@dataclass(frozen=True)
class Setting:
    """The shape of the tasks in one column of the grid.

    Attributes:
        documents: whether query contexts come from the documents of the support contexts, from others or from any.
    """

    shape: TaskShape
    documents: Documents = "any"

    def __str__(self) -> str:
        suffix = "" if self.documents == "any" else f", {self.documents} documents"
        return f"{self.shape.n_way}-way {self.shape.k_shot}-shot{suffix}"


@dataclass(frozen=True)
class SettingResult:
    """Accuracies on the tasks of a setting.

    Attributes:
        by_method: accuracy of every task, by method name.
        by_step: accuracy of every task after 0, 1, ... adaptation steps of the learner.
        problem: why there is no result: the data cannot supply the tasks, or the head has another number of classes.
    """

    by_method: dict[str, list[float]]
    by_step: list[list[float]]
    problem: str | None = None


def evaluate_setting(
    model: Model, tasks: TaskSource, n_tasks: int, adaptation_steps: int, process: Process, name: str = "few-shot"
) -> SettingResult:
    """Return the accuracies of all methods on tasks 0 to n_tasks - 1 of step 0. A collective.

    The result does not depend on the number of ranks.

    Args:
        name: name of the tasks in the progress display.

    Raises:
        TaskError: a task cannot be sampled. Every rank raises.
    """
    rows: list[torch.Tensor] = []
    local_indices = range(process.rank, n_tasks, process.world_size)
    # every rank samples all tasks, so that a task that cannot be sampled raises on all ranks
    indices = track(range(n_tasks), f"sampling tasks, {name}", n_tasks)
    episodes = [tasks.sample(step=0, index=index) for index in indices]
    names: list[str] = []
    for index in track(local_indices, f"evaluating tasks, {name}", len(local_indices)):
        episode = episodes[index]
        found = {CHANCE: 1 / episode.n_way, LENGTHS_ONLY: lengths_only_accuracy(episode, model.tokenizer)}
        found |= _named("TF-IDF", tfidf_accuracies(episode, model.tokenizer))
        episode = episode.to(process.device)
        for name, theta in ((model.initial_name, model.untrained), ("frozen", model.theta)):
            found |= _named(name, frozen_feature_accuracies(model.network, theta, episode, tasks.readout))
        curve = adaptation_curve(model.network, model.learner, model.theta, episode, tasks.readout, adaptation_steps)
        names = list(found)
        rows.append(
            torch.cat([torch.tensor(list(found.values()), dtype=torch.float64, device=curve.device), curve.double()])
        )
    names = names or _names(model.initial_name)
    accuracies = torch.zeros(n_tasks, len(names) + adaptation_steps + 1, device=process.device, dtype=torch.float64)
    for index, row in zip(local_indices, rows, strict=True):
        accuracies[index] = row
    columns = process.sum_over_ranks(accuracies).T.tolist()
    return SettingResult(dict(zip(names, columns, strict=False)), columns[len(names) :])


def _named(model: str, found: dict[str, float]) -> dict[str, float]:
    return {f"{model}, {classifier}": value for classifier, value in found.items()}


def _names(initial_name: str) -> list[str]:
    """Return the names of the methods, for a rank that has no task."""
    classifiers = ("nearest prototype", "logistic regression")
    return [
        CHANCE,
        LENGTHS_ONLY,
        *(f"{model}, {name}" for model in ("TF-IDF", initial_name, "frozen") for name in classifiers),
    ]


def evaluate_grid(
    model: Model,
    settings: Iterable[tuple[Setting, Callable[[], TaskSource]]],
    n_tasks: int,
    adaptation_steps: int,
    process: Process,
) -> Iterator[tuple[Setting, SettingResult]]:
    """Yield the result of each setting. A setting that raises a TaskError gets a result with a `problem`."""
    for setting, make_tasks in settings:
        try:
            check_n_way(model.learner, model.theta, setting.shape.n_way)
            yield setting, evaluate_setting(model, make_tasks(), n_tasks, adaptation_steps, process, str(setting))
        except TaskError as error:
            yield setting, SettingResult({}, [], problem=str(error))


def best_readout(
    model: Model,
    make_tasks: Callable[[Readout], TaskSource],
    readouts: Iterable[Readout],
    n_tasks: int,
    process: Process,
) -> Readout:
    """Return the readout with the highest nearest-prototype accuracy of frozen features. A collective.

    Args:
        make_tasks: returns the tasks for the choice, which must not be the tasks that are reported.
    """
    means: dict[Readout, float] = {}
    for readout in readouts:
        tasks, total = make_tasks(readout), torch.zeros((), dtype=torch.float64, device=process.device)
        local_indices = range(process.rank, n_tasks, process.world_size)
        for index in track(local_indices, f"choosing the readout, {readout}", len(local_indices)):
            episode = tasks.sample(step=0, index=index).to(process.device)
            found = frozen_feature_accuracies(model.network, model.theta, episode, readout)
            total += found["nearest prototype"]
        means[readout] = float(process.sum_over_ranks(total)) / n_tasks
    return max(means, key=lambda readout: means[readout])


def grid_name(about: Mapping[str, object], run: RunConfig) -> str:
    """Return the file name of grid results, without the step.

    It contains every setting that differs from the run, so that results of different settings get different files.

    Args:
        about: word_split (or data), readout and overrides.
    """
    parts = ["few_shot"]
    if "data" in about:
        parts.append(Path(str(about["data"])).stem)
    elif about["word_split"] != run.evaluation.word_split:
        parts.append(str(about["word_split"]))
    if about["readout"] != run.smlmt.readout:
        parts.append(str(about["readout"]))
    overrides = about["overrides"]
    if isinstance(overrides, list) and overrides:
        plain = "_".join(sorted(overrides))
        parts.append(plain if _FILE_NAME_SAFE.fullmatch(plain) else f"{digest64(plain):016x}")
    return "_".join(parts)


def write_grid(path: Path, results: dict[Setting, SettingResult], about: Mapping[str, object], since: float) -> None:
    """Write means with 95 % intervals, and the accuracy of every task.

    Results of other settings that are already in the file are kept if their `about` is equal.

    Args:
        about: metadata: step, readout and the settings that determine the tasks.
        since: modification time of the weights [s since the epoch]. Results in an older file are discarded.
    """
    settings = {
        _key_of(entry): entry
        for entry in (
            {
                **asdict(setting.shape),
                "documents": setting.documents,
                **asdict(result),
                "summary": {name: Estimate.of(values).to_json() for name, values in result.by_method.items()},
                "summary_by_step": [Estimate.of(values).to_json() for values in result.by_step],
            }
            for setting, result in results.items()
        )
    }
    for entry in _kept(path, about, since):
        settings.setdefault(_key_of(entry), entry)
    replace_text(path, json.dumps({**about, "settings": [*settings.values()]}, indent=1) + "\n")


def _kept(path: Path, about: Mapping[str, object], since: float) -> list[dict[str, Any]]:
    if not path.exists() or path.stat().st_mtime < since:
        return []
    try:
        content = json.loads(path.read_text())
    except ValueError:
        # a damaged file is replaced
        return []
    settings: list[dict[str, Any]] = content.pop("settings", [])
    return settings if content == about else []


def _key_of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in ("n_way", "k_shot", "q_query", "documents"))
