"""Tests the projection: a hand calculation for pico-maml-1b on 8 GPUs, and invariants for any number of GPUs."""

import pytest

from pico_ds.config import ConfigError, load_config, parse_config
from pico_ds.config.deepspeed_config import load_deepspeed_config
from scripts.benchmarks.hardware_figures import SOURCES, Cluster, assumptions
from scripts.benchmarks.projection import collective_calls, project
from tests.launching import REPOSITORY

N = 1_057_548_288
CLUSTER = Cluster()
#: almost no latency, so that communication time is bytes over bandwidth
WITHOUT_LATENCY = Cluster(node_latency_microseconds=1e-9, network_latency_microseconds=1e-9)


def deepspeed_json(stage: int) -> dict:
    return load_deepspeed_config(REPOSITORY / f"ds_configs/zero{stage}.json")


def rows(cluster: Cluster, *gpus: int, stages: tuple[int, ...] = (1,)) -> dict[tuple[str, str, int, int], dict]:
    config = load_config(REPOSITORY / "configs/pico-maml-1b.yaml")
    found = project(config, "pico-maml-1b", [deepspeed_json(stage) for stage in stages], list(gpus), cluster)
    return {(row["kind"], row["batch"], row["stage"], row["gpus"]): row for row in found}


def test_ar_step_on_8_gpus_matches_a_hand_calculation() -> None:
    row = rows(WITHOUT_LATENCY, 8)["ar", "fixed", 1, 8]
    body = N - 2 * 50304 * 2048
    flops = 128 * 2048 * 3 * (2 * (body + 50304 * 2048) + 2 * 14 * 2048 * 2048)
    compute = flops / (0.56 * 989e12) + N * (8 + 50 / 8) / 3000e9
    # an all-reduce and an all-gather of 2 bytes per parameter
    sent = 3 * 7 / 8 * 2 * N
    assert row["tokens_per_step"] == 1024 * 2048
    assert row["seconds_per_step"] == pytest.approx(compute + sent / 350e9, rel=1e-3)
    assert row["communication_share"] == pytest.approx(sent / 350e9 / row["seconds_per_step"])
    assert row["overlapped_seconds"] == pytest.approx(compute, rel=1e-3)
    assert row["overlapped_share"] == 0
    assert row["compute_bound_seconds"] == pytest.approx(flops / 989e12, rel=1e-3)
    assert row["bandwidth_bound_seconds"] == pytest.approx(sent / 450e9)
    assert row["over_critical_batch"] == pytest.approx(1024 * 2048 / 1.1e6)


def test_projection_respects_lower_bounds_on_any_number_of_gpus() -> None:
    found = rows(CLUSTER, 1, 8, 64, 512, stages=(1, 2, 3))
    for (kind, batch, stage, gpus), row in found.items():
        assert 0 <= row["overlapped_share"] <= row["communication_share"] < 1
        assert row["seconds_per_step"] >= row["overlapped_seconds"]
        assert row["overlapped_seconds"] >= max(row["compute_bound_seconds"], row["bandwidth_bound_seconds"])
        if gpus == 1:
            assert row["communication_share"] == row["bandwidth_bound_seconds"] == 0
            assert row["efficiency"] > 0.97, "only the update costs extra"
        else:
            assert row["communication_share"] > 0
            # on one GPU the update is not sharded, so its efficiency can be lower
            fewer = gpus // 8
            assert fewer == 1 or row["efficiency"] < found[kind, batch, stage, fewer]["efficiency"] < 1
    # 64 tasks cannot be divided over 512 GPUs
    many, few = (found["meta", "fixed", 1, gpus] for gpus in (512, 64))
    assert many["seconds_per_step"] >= few["seconds_per_step"]
    assert many["efficiency"] < 1 / 8
    assert found["meta", "grown", 1, 512]["tokens_per_step"] == 512 * few["tokens_per_step"]


def test_ring_across_nodes_has_the_bandwidth_of_the_network() -> None:
    assert CLUSTER.model(8).bytes_per_second == 350e9
    assert CLUSTER.model(9).bytes_per_second == 200e9
    assert CLUSTER.model(8).latency_seconds == pytest.approx(3.4e-6)
    # 2 of the 16 hops of a ring over two nodes cross between nodes
    assert CLUSTER.model(16).latency_seconds == pytest.approx((14 * 3.4 + 2 * 14) / 16 * 1e-6)


def test_collective_calls_match_a_hand_calculation() -> None:
    """Buckets of 50 million elements: 30 and 20 fill one, 60 is larger than one, and 1 is left."""
    sizes = [1_000_000, 60_000_000, 20_000_000, 30_000_000]
    assert collective_calls(deepspeed_json(1), sizes) == {"all-reduce": 3, "all-gather": 2}
    assert collective_calls(deepspeed_json(3), sizes) == {"all-gather": 4, "reduce-scatter": 3}
    assert collective_calls(deepspeed_json(0), sizes) == {"all-reduce": 1}


def test_every_assumption_is_listed_with_its_source() -> None:
    shown = {row["assumed"]: row for row in assumptions(Cluster(utilization=0.4))}
    assert shown.keys() == SOURCES.keys()
    assert (shown["utilization"]["value"], shown["utilization"]["source"]) == (0.4, "given")
    assert shown["peak_tflops"]["source"] == SOURCES["peak_tflops"]


def test_configuration_without_vocab_size_fails() -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        project(parse_config(""), "demo", [deepspeed_json(1)], [8], CLUSTER)
