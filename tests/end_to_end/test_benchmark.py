"""The benchmark's one command, small; what it measures here is not looked at."""

import json
from pathlib import Path

from tests.end_to_end.commands import run


def test_checkpoint_table_and_json(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    place = ["--directory", str(tmp_path), "--json", str(out)]
    text = run(
        "python", "scripts/benchmark.py", "checkpoint", "--size", "tiny", "--ranks", "2", "--repeats", "1", *place
    )
    assert "verify [GB/s]" in text
    found = json.loads(out.read_text())
    assert {"processor", "cores", "versions", "commit", "settings"} <= found.keys()
    (result,) = found["results"]
    assert result["bytes"] == 12 * 11_282_784
    assert result["seconds"].keys() == {"raw disk", "pico_ds", "deepspeed", "torch dcp"}
    assert result["seconds"]["pico_ds"].keys() == {"stall_seconds", "save_seconds", "load_seconds", "verify_seconds"}
    assert all(value >= 0 for seconds in result["seconds"].values() for value in seconds.values())
    assert list(tmp_path.iterdir()) == [out], "nothing else is left behind"
