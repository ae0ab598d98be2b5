"""Computes efficiencies and a cost model from steps and collectives measured at several world sizes."""

import math
from dataclasses import replace
from typing import Any

from .cost_model import CostModel, Work, combine, fit, ring
from .scaling import COLLECTIVES, STEPS

Row = dict[str, Any]

EFFICIENCY, MODEL, NOTES = "scaling: efficiency", "scaling: cost model", "scaling: notes"
_SERIES = ("scaling", "kind", "stage")


def conclude(rows: list[Row], on_gpu: bool) -> list[Row]:
    """Return the measured rows, the efficiency of each step, the fitted cost models, and notes for the reader."""
    steps = [row for row in rows if row["command"] == STEPS]
    collectives = [row for row in rows if row["command"] == COLLECTIVES]
    others = [row for row in rows if row["command"] not in (STEPS, COLLECTIVES)]
    for row in steps:
        row["ring_bytes"] = round(_ring_work(row).sent_bytes)
    efficiencies = [_efficiency(row, steps, on_gpu) for row in steps]
    timed, notes, models = [*collectives, *steps], _notes(steps), []
    measured = [(work_of(row, on_gpu), seconds_of(row)) for row in timed]
    if (model := _fit(_measurements_to_fit(measured), "seconds", notes)) is not None:
        for row, (work, seconds) in zip([*collectives, *efficiencies], measured, strict=True):
            predicted = model.seconds(work)
            row |= {"model_seconds": predicted, "residual": seconds / predicted - 1}
            row["fitted"] = (work, seconds) in _measurements_to_fit(measured)
            if row["command"] == EFFICIENCY:
                row["model_communication_share"] = model.communication_seconds(work) / predicted
        models.append(_model_row(model, "seconds", [*collectives, *efficiencies], "residual"))
    # fit CPU seconds without crowding: they hardly change if other programs, or other ranks, use the same cores
    uncrowded = (
        [] if on_gpu else [(replace(work_of(row, on_gpu), crowding=1.0), row["cpu_seconds_per_rank"]) for row in steps]
    )
    if uncrowded and (model := _fit(_measurements_to_fit(uncrowded), "CPU seconds", notes)) is not None:
        for row, (work, seconds) in zip(efficiencies, uncrowded, strict=True):
            row["cpu_residual"] = seconds / model.seconds(work) - 1
        models.append(_model_row(model, "CPU seconds", efficiencies, "cpu_residual"))
    note_rows = [{"command": NOTES, "note": note} for note in notes]
    return [*collectives, *steps, *efficiencies, *others, *models, *note_rows]


def _fit(measured: list[tuple[Work, float]], quantity: str, notes: list[str]) -> CostModel | None:
    """Return the fitted cost model. If there are too few measurements, add a note and return None."""
    try:
        return fit([work for work, _ in measured], [seconds for _, seconds in measured])
    except ValueError as error:
        notes.append(f"no cost model of {quantity}: {error}")
        return None


def _measurements_to_fit(measured: list[tuple[Work, float]]) -> list[tuple[Work, float]]:
    """Return the measurements to fit: those whose ranks do not share cores if there are any, otherwise all.

    A step that counts as both weak and strong scaling is used once.
    """
    each = [one for i, one in enumerate(measured) if one not in measured[:i]]
    return [(work, seconds) for work, seconds in each if work.crowding == 1] or each


def seconds_of(row: Row) -> float:
    """Return the measured seconds of a collective or a step."""
    return float(row["seconds"] if row["command"] == COLLECTIVES else row["seconds_per_step"])


def work_of(row: Row, on_gpu: bool) -> Work:
    """Return the work of a measured row.

    The sent bytes are the ones that the kernel counted, or the bytes of a ring if the kernel did not count.
    """
    crowding = 1.0 if on_gpu else _crowding(row)
    if row["command"] == COLLECTIVES:
        return replace(ring(row["collective"], row["payload_bytes"], row["ranks"]), crowding=crowding)
    work = replace(_ring_work(row), crowding=crowding)
    # ignore the count of a single rank, because its connections belong to the launcher
    return replace(work, sent_bytes=float(row["sent_bytes"])) if "sent_bytes" in row and row["ranks"] > 1 else work


def _ring_work(row: Row) -> Work:
    return combine(
        [ring(name, one["payload_bytes"], row["ranks"], one["calls"]) for name, one in row["collectives"].items()],
        {row["kind"]: 1e9 * row["gflops_per_rank"]},
    )


def _efficiency(row: Row, steps: list[Row], on_gpu: bool) -> Row:
    """Return the efficiency of a step relative to the smallest world size of its series.

    `efficiency` compares seconds and `cpu_efficiency` CPU seconds. `cores_allow` is the highest efficiency that the
    number of cores permits.
    """
    series = [other for other in steps if all(row[key] == other[key] for key in _SERIES)]
    first = min(series, key=lambda other: other["ranks"])
    # in strong scaling each rank does less work than at the smallest world size
    share = first["ranks"] / row["ranks"] if row["scaling"] == "strong" else 1.0
    return {
        "command": EFFICIENCY,
        **{key: row[key] for key in (*_SERIES, "ranks")},
        "seconds_per_step": row["seconds_per_step"],
        "tokens_per_second": row["tokens_per_step"] / row["seconds_per_step"],
        "efficiency": share * first["seconds_per_step"] / row["seconds_per_step"],
        "cores_allow": 1.0 if on_gpu else _crowding(first) / _crowding(row),
        "cpu_efficiency": share * first["cpu_seconds_per_rank"] / row["cpu_seconds_per_rank"],
    }


def _crowding(row: Row) -> float:
    return max(1.0, row["ranks"] / row["cores"])


def _model_row(model: CostModel, quantity: str, rows: list[Row], residual: str) -> Row:
    def worst(command: str, fitted: bool) -> float | None:
        # the fit of CPU seconds uses all rows
        of_command = [row for row in rows if row["command"] == command]
        chosen = [row for row in of_command if (residual != "residual" or row["fitted"]) is fitted]
        return max((abs(row[residual]) for row in chosen), default=None)

    return {
        "command": MODEL,
        "quantity": quantity,
        "latency_microseconds": 1e6 * model.latency_seconds,
        # an infinite bandwidth means that nothing was sent, or that sending took no time
        "gb_per_second": model.bytes_per_second / 1e9 if math.isfinite(model.bytes_per_second) else None,
        **{f"{kind}_gflops_per_second": rate / 1e9 for kind, rate in model.flops_per_second.items()},
        "largest_residual_of_steps": worst(EFFICIENCY, True),
        "largest_residual_of_collectives": worst(COLLECTIVES, True),
        "of_steps_not_fitted": worst(EFFICIENCY, False),
        "of_collectives_not_fitted": worst(COLLECTIVES, False),
    }


def _notes(steps: list[Row]) -> list[str]:
    notes = []
    crowded = sorted({row["ranks"] for row in steps if row["ranks"] > row["cores"]})
    for ranks in crowded:
        cores = next(row["cores"] for row in steps if row["ranks"] == ranks)
        notes.append(
            f"{ranks} ranks share {cores} cores: their seconds and efficiency measure the oversubscribed machine, not "
            "the scaling of the software; efficiency cannot exceed cores_allow; cpu_efficiency excludes waiting"
        )
    busy = max((row["others_cpu_share"] for row in steps), default=0.0)
    if busy > 0.05:
        notes.append(
            f"other programs used up to {busy:.0%} of this machine's cores during the measurements: seconds and "
            "efficiency are affected; CPU seconds and cpu_efficiency are hardly affected"
        )
    more = sorted({row["stage"] for row in steps if row.get("sent_bytes", 0) > 1.05 * row["ring_bytes"] > 0})
    if more:
        notes.append(
            f"stages {more}: more bytes were sent than a ring needs, because gloo implements reduce-scatter as "
            "all-reduce, and because metrics and overflow checks are reduced separately"
        )
    return notes
