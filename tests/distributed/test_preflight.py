"""Preflight on two gloo ranks reports each problem in one sentence, and nothing else."""

import pytest

from pico_ds.preflight.hardware_checks import _gpu_differences
from tests.conftest import write_text_corpus
from tests.distributed.workers.preflight import preflight_findings
from tests.launching import run_ranks
from tests.shards import write_shards

Findings = dict[str, dict[str, tuple[str, list[str]]]]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    place = tmp_path_factory.mktemp("preflight")
    for node, n_documents in (("node0", 120), ("node1", 110)):
        (place / node).mkdir()
        write_text_corpus(place / node / "corpus.jsonl", n_documents)
    (place / "shards").mkdir()
    write_shards(place / "shards", width=8 * 32 + 1)
    first, second = run_ranks(preflight_findings, 2, str(place))
    for case in first:
        problems = [{check: found[1] for check, found in rank[case].items()} for rank in (first, second)]
        assert problems[0] == problems[1], "all ranks report all problems"
    return first


def test_preflight_finds_no_problem_on_identical_ranks(findings: Findings) -> None:
    sound = findings["sound"]
    assert [check for check, (_, problems) in sound.items() if problems] == []
    assert set(sound) > {"versions", "configuration", "devices", "clocks", "data", "all-reduce", "all-gather"}
    assert "64 KiB" in sound["all-reduce"][0]
    assert "GB/s" in sound["all-reduce"][0]
    assert "GiB free" in sound["disk of the run directory"][0]
    assert "ms apart" in sound["clocks"][0]
    assert "train" in sound["data"][0]


def test_preflight_accepts_token_shards(findings: Findings) -> None:
    assert [check for check, (_, problems) in findings["shards"].items() if problems] == []
    assert findings["shards"]["data"][0] == "token shards"


@pytest.mark.parametrize(
    ("case", "check", "parts"),
    [
        ("version", "versions", ["torch: ", "0.0.1 on rank 1 (", "install the same version"]),
        ("code", "code of pico_ds", [" on rank 1 (", "check out the same commit"]),
        ("config", "configuration", ["rank 1 (", "meta.inner_steps is 7, not 2; training.lr is 0.5, not 0.003"]),
        ("clock", "clocks", ["rank 1 (", "from the clock of rank 0 by +60.0 s", "synchronize the clocks"]),
        ("disk", "disk of the run directory", ["rank 1 (", "0.0 GiB are free", "free space"]),
        ("network", "all-reduce", ["--least_gb_per_second is 1e+06"]),
        ("other node", "run directory is shared", ["rank 1 (", "does not exist here", "that all nodes share"]),
        ("other node", "data", ["rank 1 (", "the data differ from the data of rank 0"]),
        ("no data", "data", ["rank 1 (", "corpus.jsonl"]),
        ("no directory", "run directory is shared", ["rank 0 (", "cannot write to"]),
        ("no directory", "disk of the run directory", ["rank 0 (", "1 (", "cannot write to"]),
    ],
)
def test_each_problem_names_the_rank_and_the_fix(findings: Findings, case: str, check: str, parts: list[str]) -> None:
    (message,) = findings[case][check][1]
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("case", "check"), [("version", "versions"), ("clock", "clocks"), ("disk", "disk of the run directory")]
)
def test_other_checks_pass(findings: Findings, case: str, check: str) -> None:
    assert [name for name, (_, problems) in findings[case].items() if problems] == [check]


def test_different_gpus_are_reported() -> None:
    assert _gpu_differences([(8, 79)] * 16) == ()
    (message,) = _gpu_differences([(8, 79)] * 8 + [(8, 39)] * 8)
    assert "8 of 39 GiB (from rank 8), 8 of 79 GiB (from rank 0)" in message
