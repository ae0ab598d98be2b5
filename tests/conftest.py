"""Fixtures of all tests. Array shapes and types of public signatures are checked at run time in every test."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

# huggingface_hub reads this variable once, when it is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("WANDB_API_KEY", None)
# a shell ignores SIGINT in background jobs, and the commands that tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup ignores SIGHUP, and the commands that tests start would inherit that
signal.signal(signal.SIGHUP, signal.SIG_DFL)
install_import_hook(["pico_ds.meta", "pico_ds.tasks", "pico_ds.data.rows"], "beartype.beartype")


if TYPE_CHECKING:
    from tests.shared_runs import SharedRuns


@pytest.fixture(scope="session")
def session_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all pytest workers share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _session_cache(session_directory: Path) -> None:
    """Use a new cache for the test session, unless PICO_DS_CACHE is set."""
    os.environ.setdefault("PICO_DS_CACHE", str(session_directory / "cache"))


@pytest.fixture(scope="session")
def shared_runs(session_directory: Path) -> Iterator["SharedRuns"]:
    """Small runs that are trained once per test session. Tests only read them."""
    from tests.shared_runs import SharedRuns

    runs = SharedRuns(session_directory / "shared_runs")
    yield runs
    runs.check_unchanged()


@pytest.fixture
def text_corpus(tmp_path: Path) -> Path:
    """A JSONL file of 120 documents of simple sentences, enough for 3-way tasks."""
    return write_text_corpus(tmp_path / "corpus.jsonl")


def write_text_corpus(path: Path, n_documents: int = 120) -> Path:
    """Write a JSONL file of stories about animals and places, the same at every call. Returns `path`."""
    import json

    import numpy as np

    rng = np.random.default_rng(0)
    subjects = ["cat", "dog", "horse", "bird", "fish", "mouse", "tiger", "lion", "zebra", "camel", "goat", "sheep"]
    places = ["house", "river", "forest", "mountain", "valley", "garden", "market", "street", "tower", "bridge"]
    verbs = ["sees", "likes", "follows", "hears", "finds", "leaves", "guards", "visits", "paints", "draws"]
    with path.open("w") as file:
        for number in range(n_documents):
            sentences = [
                f"The {rng.choice(subjects)} {rng.choice(verbs)} the {rng.choice(subjects)} near the "
                f"{rng.choice(places)}."
                for _ in range(30)
            ]
            file.write(json.dumps({"text": f"Story {number}. " + " ".join(sentences)}) + "\n")
    return path
