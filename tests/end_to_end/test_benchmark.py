"""The benchmark commands at small sizes. Tests check counts, but no measured times."""

import json
from pathlib import Path
from typing import Any

import pytest

from pico_ds.config.deepspeed_config import load_deepspeed_config
from scripts.benchmarks.projection import collective_calls
from tests.launching import REPOSITORY, real, warm

#: one layer, and the vocabulary size of the tokenizer of the random corpus
SMALL = ["model.vocab_size=4608", "model.n_layers=1"]


def benchmark(tmp_path: Path, command: str, *options: str) -> tuple[str, list[dict[str, Any]]]:
    out = tmp_path / "result.json"
    timing = ["--repeats", "1", "--json", str(out)]
    text = real.python("scripts/benchmark.py", command, *timing, *options, timeout_seconds=580)
    content = json.loads(out.read_text())
    assert {"processor", "cores", "versions", "commit", "settings"} <= content.keys()
    return text, content["results"]


@pytest.mark.slow
def test_checkpoint_measures_the_same_bytes_for_all_writers(tmp_path: Path) -> None:
    text, results = benchmark(tmp_path, "checkpoint", "--size", "tiny", "--ranks", "2", "--directory", str(tmp_path))
    assert "verify_gb_per" in text
    assert [row["way"] for row in results] == ["raw disk", "pico_ds", "deepspeed", "torch dcp"]
    assert all(row["bytes"] == 12 * 11_282_784 for row in results)
    seconds = [value for row in results for name, value in row.items() if name.endswith("_seconds")]
    assert len(seconds) == 3 * 4 + 1
    assert min(seconds) >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"], "temporary files are left"


@pytest.mark.slow
def test_snapshots_measures_two_ranks_under_zero3(tmp_path: Path) -> None:
    """The command measures the demo and the model of --size."""
    options = ["--size", "tiny", "--rows", "2", "--length", "32", "--tasks", "1", "--ranks", "2", "--stages", "3"]
    small = ["learning_dynamics.adaptation_steps=1", "smlmt.n_way=3", "smlmt.k_shot=1", "smlmt.q_query=1"]
    _, results = benchmark(tmp_path, "snapshots", *options, "--set", *small)
    assert [row["config"] for row in results] == ["demo", "pico-maml-tiny"]
    for row in results:
        assert (row["ranks"], row["stage"], row["rows"], row["tasks"]) == (2, 3, 2, 1)
        assert row["bytes"] > 0
        assert row["stall_seconds"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_measures_every_part(tmp_path: Path) -> None:
    """This is the command that users run on a GPU."""
    options = ["--size", "tiny", "--rows", "4", "--length", "32", "--tasks", "2", "--inner_steps", "1"]
    text, results = benchmark(tmp_path, "all", *options, "--stages", "3", "--set", *SMALL)
    assert "failed" not in text
    by_command = {name: [row for row in results if row["command"] == name] for name in {r["command"] for r in results}}
    commands = {"attention", "lm", "fomaml", "head", "memory", "tasks", "feeding", "comm", "sampling"}
    assert by_command.keys() == commands
    for name in ("lm", "fomaml"):
        assert [row["stage"] for row in by_command[name]] == [3, 3]
        assert by_command[name][0]["over_plain"] > 0.5
    (lm, accumulated), (fomaml, prototype) = by_command["lm"], by_command["fomaml"]
    assert lm["tokens_per_second"] * lm["seconds_per_step"] == pytest.approx(4 * 32)
    assert accumulated["tokens_per_second"] * accumulated["seconds_per_step"] == pytest.approx(4 * 8 * 32)
    for row in (fomaml, prototype):
        # two tasks, support and query
        assert row["tokens_per_second"] * row["seconds_per_step"] == pytest.approx(2 * 2 * 4 * 32)
    assert [row.get("tasks") for row in by_command["memory"]] == [1, None]
    assert by_command["tasks"][0]["loop_over_step"] > 0
    assert 0 <= by_command["feeding"][0]["data_wait_fraction"] < 1
    assert {row["kernel"] for row in by_command["attention"] if "milliseconds" in row} == {"sdpa_flash", "math"}
    # communication does not depend on inner steps and tasks
    traffic = [
        {k: v for k, v in row.items() if k not in ("inner_steps", "tasks_per_rank")} for row in by_command["comm"]
    ]
    assert len(traffic) == 3
    assert traffic[0] == traffic[1] == traffic[2]


@pytest.mark.slow
def test_scaling_counts_the_bytes_and_calls_of_a_ring(tmp_path: Path) -> None:
    """The counts on two ranks equal those that the ring formula and the projection predict."""
    options = ["--size", "tiny", "--rows", "4", "--length", "32", "--inner_steps", "1", "--ranks", "2"]
    text, results = benchmark(tmp_path, "scaling", *options, "--stages", "1", "3", "--set", *SMALL)
    assert "failed" not in text
    by_command = {name: [row for row in results if row["command"] == name] for name in {r["command"] for r in results}}
    steps, efficiencies = by_command["scaling: steps"], by_command["scaling: efficiency"]
    assert len(steps) == len(efficiencies) == 2 * 2 * 2
    for row in steps:
        ar = row["kind"] == "ar"
        assert row["threads_per_rank"] == 1
        assert row["tokens_per_step"] == 4 * 32 * (1 if ar else 2) * 2
        # gloo implements reduce-scatter as an all-reduce, and a few metrics are summed in addition to the weights
        expected_bytes = row["ring_bytes"] * (1 if row["stage"] == 1 else 1.5)
        assert row["sent_bytes"] == pytest.approx(expected_bytes, rel=0.02)
        assert row["received_bytes"] == pytest.approx(expected_bytes, rel=0.02)
        payload = {name: counts["payload_bytes"] for name, counts in row["collectives"].items()}
        gradient = payload["all-reduce" if row["stage"] == 1 else "reduce-scatter"]
        assert gradient == pytest.approx(payload["all-gather"], rel=1e-3)
        # a decoder of one layer has 12 parameters, and the head has 2
        sizes = [1] * (12 if ar else 14)
        expected_calls = collective_calls(
            load_deepspeed_config(REPOSITORY / f"ds_configs/zero{row['stage']}.json"), sizes
        )
        metric_calls = 2 if row["stage"] == 1 else 3
        expected_calls["all-reduce"] = expected_calls.get("all-reduce", 0) + metric_calls
        assert {name: counts["calls"] for name, counts in row["collectives"].items()} == expected_calls
    assert all(row["residual"] > -1 for row in efficiencies)
    assert by_command["scaling: cost model"][0]["ar_gflops_per_second"] > 0
    # 512 GPUs have only 64 tasks, so most GPUs wait
    projected = by_command["scaling: projection"]
    assert {row["gpus"] for row in projected} == {8, 64, 512}
    assert all(
        row["efficiency"] < 1 / 8
        for row in projected
        if (row["gpus"], row["kind"], row["batch"]) == (512, "meta", "fixed")
    )


def test_scaling_projects_without_measurements(tmp_path: Path) -> None:
    options = ["--no_measurements", "--config", "configs/pico-maml-tiny.yaml", "--gpus", "2", "--utilization", "0.3"]
    out = tmp_path / "result.json"
    warm.python("scripts/benchmark.py", "scaling", "--repeats", "1", "--json", str(out), *options)
    results = json.loads(out.read_text())["results"]
    assert {row["command"] for row in results} == {"scaling: assumptions", "scaling: projection"}
    text = warm.python("scripts/benchmark.py", "scaling", "--config", "configs/demo.yaml", check=False)
    assert "\nerror: demo: model.vocab_size" in f"\n{text}"
    assert "Traceback" not in text


@pytest.mark.slow
def test_failed_measurement_is_recorded(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = ["scripts/benchmark.py", "lm", "--size", "none", "--stages", "1", "--repeats", "1", "--json", str(out)]
    text = real.python(*command, check=False)
    assert "failed" in text
    (row,) = json.loads(out.read_text())["results"]
    assert row["failed"].startswith("exit code")


@pytest.mark.slow
def test_index_and_prepare_report_every_field(tmp_path: Path) -> None:
    _, results = benchmark(tmp_path, "index", "--rows", "64")
    decoding, *indexes = results
    assert decoding["tokens"] == 64 * 2049
    assert [(row["what"].rpartition(" ")[2], row["threads"]) for row in indexes] == [
        (context, threads) for context in ("window", "sentence") for threads in (1, 2)
    ]
    for row in indexes:
        assert 0 < row["occurrences_per_token"] < 1
        assert 2 < row["bytes_per_token"] < row["peak_bytes_per_token"]
    _, (tokenizer, prepared) = benchmark(tmp_path, "prepare", "--megabytes", "1")
    assert tokenizer["tokens"] == prepared["tokens"] > 100_000
    assert prepared["share_of_tokenizer"] > 0
