"""Everything that a GPU computes runs on a fake CUDA device, with the right devices and types and without waits."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.fake_cuda.device_guard import build_guard
from tests.launching import REPOSITORY, environment

Results = dict[str, dict[str, Any]]
#: an evaluation reads rows and tasks when it needs them, and its results at the end
EVALUATION_WAITS = {
    "_to_copy in evaluation/validation_loss.py::evaluate_validation_loss",
    "_local_scalar_dense in evaluation/validation_loss.py::evaluate_validation_loss",
    "_local_scalar_dense in evaluation/few_shot.py::evaluate_few_shot",
}
#: a snapshot moves each activation, gradient and weight to the host, so that the device holds only one at a time
SNAPSHOT_WAITS = {
    "_to_copy in dynamics/activations.py::observe",
    "_local_scalar_dense in dynamics/activations.py::observe",
    "_to_copy in dynamics/activations.py::observe_head_entropy",
    "_to_copy in dynamics/activations.py::_move_gradient",
    "_to_copy in dynamics/activations.py::_sum_in_host_memory",
    "_local_scalar_dense in dynamics/matrix_measures.py::proportional_effective_rank",
    "_to_copy in dynamics/adaptation_measures.py::on_gradient",
    "_to_copy in dynamics/adaptation_measures.py::_effective_rank",
    "copy_ in dynamics/adaptation_measures.py::observe",
    "_to_copy in dynamics/recorder.py::<dictcomp>",
}


@pytest.fixture(scope="module")
def run_cases(session_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    """Run a group of cases in a new process, because the device guard must be loaded before torch."""
    library = session_directory / "device_guard.so"
    with FileLock(f"{library}.lock"):
        if not library.exists():
            build_guard(library)

    def run(group: str) -> Results:
        out = tmp_path_factory.mktemp("fake_cuda") / "results.json"
        command = [sys.executable, "-m", "tests.fake_cuda.cases", str(library), str(out), group]
        subprocess.run(command, cwd=REPOSITORY, env=environment(), check=True, timeout=900)
        results: Results = json.loads(out.read_text())
        return results

    return run


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_steps_of_every_learner_and_head_never_wait(run_cases: Callable[[str], Results], precision: str) -> None:
    # costs 30 CPU seconds
    results = run_cases(precision)
    assert len(results) == 28
    assert {name: result for name, result in results.items() if result.get("waits") != {}} == {}
    assert all(result["tasks_per_batch"] == 2 for result in results.values())


@pytest.mark.slow
def test_steps_with_every_option_never_wait(run_cases: Callable[[str], Results]) -> None:
    results = run_cases("options")
    assert {name: result for name, result in results.items() if result.get("waits") != {}} == {}


def test_evaluations_and_snapshots_wait_only_for_their_results(run_cases: Callable[[str], Results]) -> None:
    """At the widths of the 1B configuration."""
    # costs 20 CPU seconds
    results = run_cases("wide")
    assert [result.get("error") for result in results.values()] == [None] * 4
    assert results["1b, meta"]["waits"] == results["1b, ar"]["waits"] == {}
    assert set(results["1b, evaluation"]["waits"]) <= EVALUATION_WAITS
    assert set(results["1b, snapshot"]["waits"]) <= SNAPSHOT_WAITS


@pytest.mark.slow
def test_steps_of_the_1b_model_need_the_planned_memory(run_cases: Callable[[str], Results]) -> None:
    """The plan is an upper bound, and at most 20 % too high."""
    for name, result in run_cases("memory").items():
        planned = sum(result["plan"].values())
        assert result["peak_bytes"] <= planned <= 1.2 * result["peak_bytes"], (name, result)


def test_fake_device_notices_waits_and_wrong_tensors(run_cases: Callable[[str], Results]) -> None:
    results = run_cases("faults")
    for name in ("item", "condition", "list", "copy to host", "copy to device"):
        assert results[name]["waits"], name
    assert results["copy that does not block"]["waits"] == {}
    for name in ("tensor of the host", "another type"):
        assert "error" in results[name]
    # an allocation takes a multiple of 512 bytes
    assert results["two tensors"]["peak_bytes"] == 2 * 512
