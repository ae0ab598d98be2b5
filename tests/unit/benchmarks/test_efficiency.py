"""Tests efficiencies and the fit on rows that a model generated: 1, 2 and 4 ranks on a machine with two cores."""

from typing import Any

import pytest

from scripts.benchmarks.cost_model import CostModel
from scripts.benchmarks.efficiency import EFFICIENCY, MODEL, NOTES, conclude, work_of
from scripts.benchmarks.scaling import COLLECTIVES, STEPS, by_kind

TRUE = CostModel(100e-6, 1e9, {"ar": 20e9, "fomaml": 10e9})
P = 40_000_000


def measured_rows(ranks: tuple[int, ...] = (1, 2, 4)) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for n in ranks:
        collectives = {name: {"calls": 2, "payload_bytes": P} for name in ("all-reduce", "all-gather")}
        for size in (1 << 12, 1 << 20, 1 << 25) if n > 1 else ():
            row = {"command": COLLECTIVES, "ranks": n, "cores": 2, "collective": "all-reduce", "payload_bytes": size}
            rows.append({**row, "seconds": TRUE.seconds(work_of(row, on_gpu=False))})
        for kind, gflops in (("ar", 8.0), ("fomaml", 16.0)):
            for scaling in ("weak", "strong"):
                own = gflops * (4 / n if scaling == "strong" else 1)
                row = {"command": STEPS, "kind": kind, "scaling": scaling, "stage": 1, "ranks": n, "cores": 2}
                row |= {"gflops_per_rank": own, "collectives": collectives, "tokens_per_step": 100 * n}
                row |= {"cpu_seconds_per_rank": 1e9 * own / TRUE.flops_per_second[kind], "others_cpu_share": 0.0}
                rows.append({**row, "seconds_per_step": TRUE.seconds(work_of(row, on_gpu=False))})
    return rows


def table(rows: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["command"] == command]


def test_fit_recovers_the_true_model_and_predicts_rows_that_are_not_fitted() -> None:
    rows = conclude(measured_rows(), on_gpu=False)
    model, of_cpu_seconds = table(rows, MODEL)
    assert model["latency_microseconds"] == pytest.approx(100)
    assert model["gb_per_second"] == pytest.approx(1.0)
    assert model["ar_gflops_per_second"] == pytest.approx(20)
    assert model["fomaml_gflops_per_second"] == pytest.approx(10)
    assert model["of_steps_not_fitted"] == pytest.approx(0, abs=1e-9)
    # the generated CPU seconds contain only forward and backward passes
    assert of_cpu_seconds["ar_gflops_per_second"] == pytest.approx(20)
    assert (of_cpu_seconds["latency_microseconds"], of_cpu_seconds["gb_per_second"]) == (
        pytest.approx(0, abs=1e-6),
        None,
    )
    # ranks that share a core are predicted, not fitted
    assert {row["ranks"] for row in table(rows, EFFICIENCY) if not row["fitted"]} == {4}


def test_efficiencies_match_a_hand_calculation() -> None:
    by_name = {
        (row["kind"], row["scaling"], row["ranks"]): row for row in table(conclude(measured_rows(), False), EFFICIENCY)
    }
    # 0.4 s of computation; two ranks also send 6 messages with P + P / 2 bytes in total
    communicated = 6 * 100e-6 + 1.5 * P / 1e9
    assert by_name["ar", "weak", 1]["efficiency"] == 1
    assert by_name["ar", "weak", 2]["efficiency"] == pytest.approx(0.4 / (0.4 + communicated))
    assert by_name["ar", "strong", 2]["efficiency"] == pytest.approx(1.6 / (2 * (0.8 + communicated)))
    assert by_name["ar", "weak", 2]["model_communication_share"] == pytest.approx(communicated / (0.4 + communicated))
    for (_, _, ranks), row in by_name.items():
        assert row["cores_allow"] == (0.5 if ranks == 4 else 1)
        assert row["efficiency"] <= row["cores_allow"]
        assert row["cpu_efficiency"] == pytest.approx(1)


def test_notes_report_crowded_cores_and_other_programs() -> None:
    rows = measured_rows()
    assert "4 ranks share 2 cores" in table(conclude(rows, False), NOTES)[0]["note"]
    assert table(conclude(measured_rows((1, 2)), False), NOTES) == []
    rows[0]["others_cpu_share"] = 0.31
    for row in rows:
        row.setdefault("others_cpu_share", 0.31)
    assert any("31%" in row["note"] for row in table(conclude(rows, False), NOTES))


def test_bytes_counted_by_the_kernel_take_precedence_over_ring_bytes() -> None:
    row = table(measured_rows(), STEPS)[-1]
    assert work_of(row, False).sent_bytes == pytest.approx((2 + 1) * 3 / 4 * P)
    assert work_of({**row, "sent_bytes": 7}, False).sent_bytes == 7


def test_failed_world_size_does_not_discard_the_other_results() -> None:
    failed = {"command": "scaling", "measure": "scaling", "failed": "exit code 1"}
    rows = conclude([*measured_rows((1, 2)), failed], on_gpu=False)
    assert failed in rows
    assert table(rows, MODEL)
    nothing = conclude([failed], on_gpu=False)
    assert [row["command"] for row in nothing] == ["scaling", NOTES]
    assert "0 measurements" in nothing[1]["note"]


def test_operations_are_grouped_by_kind_of_collective() -> None:
    calls = {"allreduce": 2, "allgather_base": 1, "reduce_scatter_base": 1, "allgather": 1, "barrier": 3}
    found = by_kind(
        calls.items(), {"allreduce": 8, "allgather_base": 5, "reduce_scatter_base": 4, "allgather": 1, "barrier": 0}
    )
    assert found == {
        "all-reduce": {"calls": 2, "payload_bytes": 8},
        "all-gather": {"calls": 2, "payload_bytes": 6},
        "reduce-scatter": {"calls": 1, "payload_bytes": 4},
    }
