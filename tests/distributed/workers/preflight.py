"""Runs preflight on two ranks. In most cases rank 1 differs from rank 0."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from pico_ds.config import load_config
from pico_ds.config.deepspeed_config import load_deepspeed_config
from pico_ds.engine.distributed import Process
from pico_ds.preflight import rank_agreement, storage_checks
from pico_ds.preflight.run_checks import Limits, run_checks
from tests.launching import REPOSITORY


def preflight_findings(process: Process, directory: str) -> dict[str, object]:
    """Findings and problems by case and check."""
    place = Path(directory)
    odd = process.rank == 1
    # paths are relative, so another directory simulates another file system
    own = place / f"node{process.rank}"
    os.chdir(place / "node0")
    tiny, deepspeed_json = (
        str(REPOSITORY / "tests/end_to_end/tiny.yaml"),
        load_deepspeed_config(REPOSITORY / "ds_configs/zero1.json"),
    )
    results: dict[str, object] = {}

    def run_case(name: str, *overrides: str, least_gb_per_second: float | None = None) -> None:
        settings = ["data.paths=[corpus.jsonl]", "checkpointing.runs_dir=runs", "data.cache_dir=cache", *overrides]
        limits = Limits(2**16, least_gb_per_second)
        findings = list(run_checks(load_config(tiny, settings), deepspeed_json, limits, process))
        results[name] = {finding.check: [finding.found, list(finding.problems)] for finding in findings}

    def with_patch(name: str, target: object, attribute: str, value: object) -> None:
        with mock.patch.object(target, attribute, value if odd else getattr(target, attribute)):
            run_case(name)

    storage_checks._WRITTEN_BYTES = 2**20
    run_case("sound")
    shards, tokenizer = f"data.paths=[{place}/shards/data/*.parquet]", f"data.tokenizer={place}/shards/tokenizer"
    run_case("shards", "data.source=shards", shards, tokenizer)
    real_version: Callable[[str], str] = rank_agreement.version
    with_patch("version", rank_agreement, "version", lambda name: "0.0.1" if name == "torch" else real_version(name))
    if odd:
        copy = shutil.copytree(rank_agreement._SOURCES, place / "pico_ds")
        with (copy / "file_writing.py").open("a") as file:
            file.write("\n")
    with_patch("code", rank_agreement, "_SOURCES", place / "pico_ds")
    run_case("config", *(["training.lr=0.5", "meta.inner_steps=7"] if odd else []))
    real_clock = time.time_ns
    with_patch("clock", time, "time_ns", lambda: real_clock() + 60 * 10**9)
    with_patch("disk", shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 2**10))
    run_case("network", least_gb_per_second=1e6)
    storage_checks._SHARED_SECONDS = 0.5
    os.chdir(own)
    run_case("other node", f"data.cache_dir={own}")
    if odd:
        Path("corpus.jsonl").unlink()
    run_case("no data", f"data.cache_dir={own}/anew")
    (place / "file").touch()
    run_case("no directory", f"checkpointing.runs_dir={place}/file/runs", f"data.cache_dir={place}/node0/cache")
    return results
