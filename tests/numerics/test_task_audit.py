"""In tasks of the embedded corpus, only the text of a context reveals its class, for every readout."""

from pathlib import Path
from typing import get_args

import pytest

from pico_ds.config import Readout, load_config
from pico_ds.data.corpus import open_corpus
from pico_ds.evaluation.task_audit import audit
from pico_ds.tasks.task_builder import TaskBuilder

CONFIG = load_config(Path(__file__).parents[2] / "configs" / "demo.yaml")


@pytest.fixture(scope="module")
def builder() -> TaskBuilder:
    return TaskBuilder(CONFIG, open_corpus(CONFIG.data))


@pytest.mark.parametrize("readout", get_args(Readout))
def test_tasks_of_the_embedded_corpus_have_no_leaks(builder: TaskBuilder, readout: Readout) -> None:
    tokenizer = open_corpus(CONFIG.data).tokenizer
    for tasks in (builder.training_words(0, readout), builder.held_out("test", readout)):
        found = audit(tasks, tokenizer, n_tasks=25)
        assert found.problems == []
        assert found.near_copies < 5
        assert found.unknown_share is not None
        assert found.unknown_share < 0.001
