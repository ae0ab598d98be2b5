"""scripts/study.py and study_adaptation.py: budgets of equal tokens or time, and tables over runs."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.launching import REPOSITORY, warm

SHORT = ["--steps", "4", "--seeds", "0", "--jobs", "1"]
SMALL = ["evaluation.n_tasks=2", "evaluation.n_rows=4", "data.sequence_length=16"]


def study(directory: Path, *arguments: str, **options: object) -> str:
    runs = ["--runs_dir", str(directory)]
    return warm.python("scripts/study.py", *arguments, *SHORT, *runs, *SMALL, **options)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"script_{name}", REPOSITORY / "scripts" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("codes", "code"), [((0, -9), 1), ((0, 3), 1), ((0, 0), 0)])
def test_study_fails_if_any_run_fails(codes: tuple[int, int], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, remaining = script("study"), [*codes]
    monkeypatch.setattr(module, "train", lambda *_: remaining.pop())
    monkeypatch.setattr(sys, "argv", ["study.py", "train", "--methods", "fomaml", "ar", "--seeds", "0"])
    assert module.main() == code


def test_unknown_readout_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["study_adaptation.py", "evaluate", "runs/a", "--readout", "bogus"])
    with pytest.raises(SystemExit):
        script("study_adaptation").parse_arguments()
    assert "--readout: invalid choice: 'bogus'" in capsys.readouterr().err


def tokens_of(run_directory: Path) -> int:
    lines = (run_directory / "logs" / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(line).get("tokens", 0) for line in lines)


@pytest.mark.slow
def test_every_method_gets_as_many_tokens_as_the_reference(directory: Path) -> None:
    study(directory, "train", "--methods", "fomaml", "ar", "multitask")
    names = ("fomaml", "ar", "multitask")
    reference, plain, control = (tokens_of(directory / f"study-tokens-{name}-0") for name in names)
    # budgets are met to within one step
    assert plain == pytest.approx(reference, abs=8 * 16)
    assert control == pytest.approx(reference, abs=12 * 25 * 17)
    assert "study" not in study(directory, "train", "--methods", "fomaml", "ar"), "finished runs were trained again"


@pytest.mark.slow
def test_table_shows_every_method(directory: Path) -> None:
    output = study(directory, "table", "--methods", "fomaml", "ar", "multitask")
    assert "equal tokens, 1 seeds" in output
    assert all(name in output for name in ("fomaml", "ar", "multitask"))
    assert "study-tokens-boil-0 is not a finished run" in study(directory, "table", "--methods", "boil", check=False)


@pytest.mark.slow
def test_adaptation_study_evaluates_words_and_labelled_texts(directory: Path) -> None:
    script, data = "scripts/study_adaptation.py", directory / "addresses.jsonl"
    assert " sentences" in warm.python(script, "sentences", str(data))
    assert {line["label"] for line in map(json.loads, data.read_text().splitlines())} > {"1863-Lincoln-1"}
    runs = [str(directory / f"study-tokens-{name}-0") for name in ("fomaml", "multitask")]
    small = ["--tasks", "2", "--choosing_tasks", "2", "--steps", "1", "--rates", "0", "0.1", "--jobs", "1"]
    output = warm.python(script, "evaluate", *runs, *small, "--shapes", "5x1")
    assert "5-way 1-shot, any documents" in output
    assert all(f"study-tokens-{name}" in output for name in ("fomaml", "multitask"))
    output = warm.python(script, "evaluate", runs[0], *small, "--data", str(data), "--readout", "mean")
    assert "5-way 5-shot, addresses" in output


@pytest.mark.slow
def test_equal_time_budget_uses_the_measured_seconds(directory: Path) -> None:
    assert "run `python scripts/study.py measure` first" in study(
        directory, "train", "--budget", "time", "--methods", "protonet", check=False
    )
    # a meta step of FOMAML takes as long as three steps of the prototypical network
    (directory / "study-seconds.json").write_text(json.dumps({"fomaml": 3.0, "protonet": 1.0, "ar": 1.0}))
    study(directory, "train", "--budget", "time", "--methods", "protonet")
    steps = [int(path.stem.split("_")[1]) for path in (directory / "study-time-protonet-0/eval_results").iterdir()]
    reference = (directory / "study-tokens-fomaml-0" / "logs" / "metrics.jsonl").read_text().splitlines()
    tasks = max(json.loads(line).get("tasks", 0) for line in reference)
    # of the four steps of FOMAML, tasks / 6 are meta steps, which take three times as long
    assert max(steps) == 4 + 2 * tasks // 6
