"""The commands evaluate.py, report.py and tasks.py, on a run with injected sentences."""

import json
import random
from pathlib import Path

import pytest

from tests.conftest import write_text_corpus
from tests.launching import warm
from tests.run_results import TINY

ANIMALS = ("zebra", "walrus", "viper", "yak")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def data_settings(directory: Path) -> list[str]:
    """Overrides with the paths of corpus and sentences."""
    corpus, sentences = write_text_corpus(directory / "corpus.jsonl"), directory / "own.jsonl"
    lines = [{"text": f"Day {n}: the {word} drinks at pond {n}.", "word": word} for word in ANIMALS for n in range(5)]
    sentences.write_text("\n".join(map(json.dumps, lines)))
    return [f"data.paths=[{corpus}]", f"smlmt.inject.path={sentences}", "smlmt.inject.ratio=0.5"]


@pytest.fixture(scope="module")
def trained(directory: Path, data_settings: list[str]) -> Path:
    settings = ["meta.learner=meta_sgd", "learning_dynamics.log_every_n_steps=1", "smlmt.n_way=[2, 3]"]
    names = [f"checkpointing.runs_dir={directory}", "checkpointing.run_name=meta"]
    output = script("train", "--config", TINY, *data_settings, *settings, *names)
    assert "50 % of the tasks use the 20 sentences in" in output
    return directory / "meta"


def script(name: str, *arguments: str, **options: object) -> str:
    return warm.python(f"scripts/{name}.py", *arguments, **options)


FEW_TASKS = [
    "--shapes",
    "3x1",
    "2x2",
    "--queries",
    "2",
    "--tasks",
    "5",
    "--steps",
    "2",
    "--documents",
    "any",
    "different",
]


def test_few_shot_grid_is_equal_on_one_and_two_ranks(trained: Path) -> None:
    path = trained / "eval_results" / "few_shot_step_6.json"
    output = script("evaluate", "few-shot", str(trained), *FEW_TASKS)
    results = json.loads(path.read_text())
    assert "adapted, 2 steps" in output
    warm.torchrun("scripts/evaluate.py", "few-shot", str(trained / "checkpoints/step_6"), *FEW_TASKS)
    assert json.loads(path.read_text()) == results
    assert results["learner"] == "meta_sgd"
    settings = {(entry["n_way"], entry["k_shot"], entry["documents"]): entry for entry in results["settings"]}
    assert settings.keys() == {(n, k, d) for n, k in ((3, 1), (2, 2)) for d in ("any", "different")}
    entry = settings[3, 1, "any"]
    assert entry["by_method"]["chance"] == [1 / 3] * 5
    methods = ("TF-IDF", "untrained", "frozen")
    kinds = ("nearest prototype", "logistic regression")
    assert set(entry["by_method"]) == {
        "chance",
        "lengths only, logistic regression",
        *(f"{method}, {kind}" for method in methods for kind in kinds),
    }
    assert [len(values) for values in entry["by_step"]] == [5, 5, 5]
    # the prototype head starts as the nearest prototype
    assert entry["by_step"][0] == pytest.approx(entry["by_method"]["frozen, nearest prototype"])


def test_shape_that_the_data_cannot_supply_is_reported_and_skipped(trained: Path) -> None:
    output = script("evaluate", "few-shot", str(trained), "--shapes", "2x1", "50x2", "--tasks", "2", "--steps", "1")
    assert "50-way 2-shot: smlmt.n_way: got 50, but only" in output
    assert "2-way 1-shot" in output


def test_labelled_texts_are_evaluated(trained: Path, directory: Path) -> None:
    data = directory / "topics.jsonl"
    kinds = {"war": "army troops", "money": "tax debt", "land": "crop farm"}
    records = [{"text": f"case {n} of {words}", "label": label} for label, words in kinds.items() for n in range(8)]
    data.write_text("\n".join(map(json.dumps, records)))
    options = ["--shapes", "3x2", "--tasks", "4", "--steps", "1", "--queries", "2", "--readout", "mean"]
    output = script("evaluate", "few-shot", str(trained), "--data", str(data), *options)
    assert "topics, readout mean" in output
    content = json.loads((trained / "eval_results" / "few_shot_topics_mean_step_6.json").read_text())
    assert content["settings"][0]["by_method"]["TF-IDF, nearest prototype"] == [1.0] * 4


def test_conll_file_is_fine_tuned(trained: Path, directory: Path) -> None:
    data, rng = directory / "own.conll", random.Random(0)
    sentences = [["The O", f"{rng.choice(ANIMALS)} B-ANI", f"{n} O"] for n in range(30)]
    data.write_text("\n\n".join("\n".join(lines) for lines in sentences))
    output = script("evaluate", "few-shot", str(trained), "--ner", str(data), "--seeds", "1")
    assert "trained, full" in output
    content = json.loads((trained / "eval_results" / "ner_own_step_6.json").read_text())
    assert set(content["f1"]) == {f"{model}, {mode}" for model in ("untrained", "trained") for mode in ("head", "full")}


def test_perplexity_is_equal_in_training_and_on_two_ranks(
    trained: Path, data_settings: list[str], directory: Path
) -> None:
    data = directory / "texts.jsonl"
    records = [{"text": "The cat sees the river. " * n, "source": "ab"[n % 2]} for n in range(1, 12)]
    data.write_text("\n".join(map(json.dumps, records)))
    output = script("evaluate", "perplexity", str(trained), "--data", str(data))
    assert "all" in output
    (path,) = (trained / "eval_results").glob("perplexity_texts_*_step_6.json")
    result = json.loads(path.read_text())
    assert set(result["by_domain"]) == {"a", "b"}
    warm.torchrun("scripts/evaluate.py", "perplexity", str(trained), "--data", str(data))
    assert json.loads(path.read_text()) == result

    settings = ["meta.learner=ar", f"evaluation.perplexity.data={data}", f"checkpointing.runs_dir={directory}"]
    output = script("train", "--config", TINY, *data_settings[:1], *settings, "checkpointing.run_name=perplexity")
    assert "perplexity" in output
    in_training = json.loads((directory / "perplexity" / "eval_results" / "step_6.json").read_text())["perplexity"]
    script("evaluate", "perplexity", str(directory / "perplexity"))  # uses the texts of the configuration
    (path,) = (directory / "perplexity" / "eval_results").glob("perplexity_texts_*_step_6.json")
    afterwards = json.loads(path.read_text())
    assert in_training == {name: afterwards[name] for name in in_training}
    logged = [
        json.loads(line) for line in (directory / "perplexity" / "logs" / "metrics.jsonl").read_text().splitlines()
    ]
    assert in_training["perplexity"] in [record.get("eval/perplexity") for record in logged]


def test_missing_perplexity_texts_fail_before_training(data_settings: list[str], directory: Path) -> None:
    settings = ["evaluation.perplexity.data=nobody/nothing", f"checkpointing.runs_dir={directory}"]
    output = script("train", "--config", TINY, *data_settings, *settings, "checkpointing.run_name=never", check=False)
    assert "error: evaluation.perplexity.data: 'nobody/nothing' is not a local file" in output
    assert not (directory / "never").exists()


def test_report_shows_layer_displacements(trained: Path, directory: Path) -> None:
    output = script("report", str(trained), "--out", str(directory / "report"))
    page = Path(output.strip().splitlines()[-1])
    assert "meta: distance that the inner loop moves each layer" in page.read_text()


AUDIT_ROWS = ("number of masks", "injected", "words unknown to masking")


def test_task_scripts_include_injected_sentences(directory: Path, data_settings: list[str]) -> None:
    output = script("tasks", "show", "--config", TINY, "--n", "8", "--step", "3", *data_settings)
    assert "the [MASK] drinks at" in output
    assert "near the" in output, "no task is from the corpus"
    statistics = script("tasks", "stats", "--config", TINY, *data_settings)
    assert "padded tokens" in statistics
    assert "held out" in statistics
    assert "words of a sample" in statistics
    audited = script("tasks", "audit", "--config", TINY, "--tasks", "4", *data_settings, check=False)
    assert [name for name in AUDIT_ROWS if name not in audited] == []
    assert "Traceback" not in audited


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["few-shot", "nowhere"], "error: nowhere is neither a checkpoint"),
        (["few-shot", "RUN", "--data", "none.jsonl"], "error: cannot read none.jsonl: No such file or directory"),
        (["few-shot", "RUN", "--data", "own.jsonl", "--readout", "best"], "error: --readout best cannot be combined"),
        (["few-shot", "RUN", "--ner", "a", "b"], "error: --ner: got 2 files; give one, or three: train, dev and test"),
        (
            ["few-shot", "RUN", "meta.head=vocab"],
            "error: RUN/checkpoints/step_6: head.layer_0.weight: the model has",
        ),
        (["few-shot", "RUN", "--data", "own.jsonl", "--ner", "a"], "error: --ner cannot be combined with --data; run"),
        (["perplexity", "RUN"], "error: --data is not given, and the run's evaluation.perplexity.data is null"),
        (["few-shot", "RUN", "--shapes", "5"], "got '5'; give N-way x K-shot, such as 5x1"),
        (["few-shot", "RUN", "--tasks", "0"], "argument --tasks: got '0'; give an integer of at least 1"),
        (["few-shot", "RUN", "--steps", "-1"], "argument --steps: got '-1'; give an integer of at least 0"),
        (["few-shot", "RUN", "--shapes", "2x999"], "error: no shape could be evaluated"),
    ],
)
def test_mistake_is_an_error_without_a_traceback(trained: Path, arguments: list[str], message: str) -> None:
    arguments = [argument.replace("RUN", str(trained)) for argument in arguments]
    output = script("evaluate", *arguments, check=False)
    assert message.replace("RUN", str(trained)) in output
    assert "Traceback" not in output
