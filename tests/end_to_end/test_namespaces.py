"""One scenario of the namespace campaign. `python -m tests.namespace_campaign` runs all of them."""

import time
from pathlib import Path

import pytest

from tests.namespace_campaign import run_campaign
from tests.network_namespaces import why_no_namespaces

HANG_SECONDS = 5


@pytest.mark.slow
def test_job_resumes_without_a_node_and_then_with_it(tmp_path: Path) -> None:
    """One of three nodes loses power without closing its connections, and returns later."""
    if (missing := why_no_namespaces()) is not None:
        pytest.skip(missing)
    started = time.monotonic()
    (outcome,) = run_campaign(["node_returns"], tmp_path, HANG_SECONDS, max_steps=60, keep_alive_seconds=3)
    assert outcome.seconds_to_detect is not None
    # the watchdog checks twice per second; CI machines can be slow
    assert HANG_SECONDS - 1 < outcome.seconds_to_detect < HANG_SECONDS + 10
    assert outcome.starts == 3
    assert outcome.steps_lost <= 8, "more than the steps since the last save and an unfinished save"
    assert time.monotonic() - started < 200
