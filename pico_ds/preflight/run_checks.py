"""Runs all checks. A failure can cause the checks after it to fail, so the basic checks come first."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pico_ds.config import RunConfig
from pico_ds.engine.distributed import Process
from pico_ds.planning.run_plan import make_plan
from pico_ds.preflight.check_results import Finding
from pico_ds.preflight.hardware_checks import check_clocks, check_devices, check_network
from pico_ds.preflight.rank_agreement import compare_ranks
from pico_ds.preflight.storage_checks import check_data, check_disk, check_shared


@dataclass(frozen=True)
class Limits:
    """Limits of the network check.

    Attributes:
        largest_bytes: size of the largest message to measure.
        least_gb_per_second: minimum bus bandwidth, reached at the best message size; None accepts any bandwidth.
    """

    largest_bytes: int
    least_gb_per_second: float | None


def run_checks(
    config: RunConfig, deepspeed_json: dict[str, Any], limits: Limits, process: Process
) -> Iterator[Finding]:
    """Yield each finding as soon as its check ends. Every rank must call this and consume all findings."""
    yield from compare_ranks(config, deepspeed_json, process)
    yield check_devices(process)
    yield check_clocks(process)
    yield from check_network(process, limits.largest_bytes, limits.least_gb_per_second)
    directory = Path(config.checkpointing.runs_dir)
    yield check_shared(directory, process)
    finding, vocab_size = check_data(config, process)
    yield finding
    vocab_size = config.model.vocab_size or vocab_size
    plan = None if vocab_size is None else make_plan(config, deepspeed_json, vocab_size, process.world_size)
    yield check_disk(directory, 0 if plan is None else plan.n_parameters, process)
