"""Tests that the task audit finds every planted problem, and none in correct tasks."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pico_ds.config import SmlmtConfig
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.evaluation.context_shortcuts import LENGTHS, lengths_only_accuracy, shortcut_hits
from pico_ds.evaluation.task_audit import Audit, _is_above_chance, audit
from pico_ds.tasks.episode import Episode
from pico_ds.tasks.masked_word_tasks import SMLMT
from pico_ds.tasks.sentence_tasks import SentenceTasks
from tests.unit.tasks.conftest import WORDS, MakeTasks
from tests.unit.tasks.test_masked_word_tasks import all_words

CONFIG = SmlmtConfig(n_way=3, k_shot=3, q_query=3, context_tokens=40, min_word_freq=3)
N_TASKS = 30


def sentences(tokenizer: TextTokenizer, signs: Callable[[int, int], str] | None = None) -> SentenceTasks:
    """Tasks of labelled sentences of random words. By default all sentences have the same number of words."""
    rng = np.random.default_rng(0)
    return SMLMT.from_sentences(
        [
            {
                "text": " ".join(rng.permutation(WORDS)[:12]) + (signs(label, number) if signs else ""),
                "label": f"q{label}",
            }
            for label in range(4)
            for number in range(12)
        ],
        tokenizer,
        CONFIG,
    )


def changed(tasks: SentenceTasks, change: Callable[[Episode], Episode]) -> SentenceTasks:
    """The tasks with `change` applied to every episode."""
    sample = tasks.sample
    tasks.sample = lambda step, index: change(sample(step, index))  # type: ignore[method-assign]
    return tasks


def with_query(episode: Episode, **fields: torch.Tensor) -> Episode:
    return replace(episode, query=replace(episode.query, **fields))


def audit_of(tasks: SMLMT | SentenceTasks, tokenizer: TextTokenizer) -> Audit:
    return audit(tasks, tokenizer, N_TASKS)


def test_correct_tasks_have_no_problem(make_tasks: MakeTasks, tokenizer: TextTokenizer) -> None:
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, 200)) for _ in range(40)]
    config = all_words(n_way=3, k_shot=3, q_query=3, context_tokens=16, max_word_freq=10_000)
    found = audit_of(make_tasks(documents, config), tokenizer)
    assert found.problems == []
    assert found.exact_copies == found.visible.total() == found.unbalanced == 0
    assert found.balance is not None
    assert found.balance.n_words == len(WORDS)
    assert found.balance.p_value > 0.001
    assert found.unknown_share == 0
    assert {"document", "tenth of the document", "first token", *LENGTHS} <= {*found.accuracies}


def test_length_that_reveals_the_class_is_found(tokenizer: TextTokenizer) -> None:
    tasks = sentences(tokenizer, lambda label, number: " !" * (9 * label + number % 2))
    found = audit_of(tasks, tokenizer)
    assert any(problem.startswith("the length of a context reveals its class") for problem in found.problems)
    assert np.mean(found.accuracies["length"]) > 0.7
    assert np.mean([lengths_only_accuracy(tasks.sample(0, i), tokenizer) for i in range(N_TASKS)]) > 0.7
    whole = audit(tasks, tokenizer, N_TASKS, check_lengths=False)
    assert not any("length" in problem for problem in whole.problems)


def test_number_of_masks_that_reveals_the_class_is_found(tokenizer: TextTokenizer) -> None:
    def add_masks(episode: Episode) -> Episode:
        parts = []
        for part in (episode.support, episode.query):
            ids = part.input_ids.clone()
            for row, label in enumerate(part.labels.tolist()):
                ids[row, :label] = tokenizer.mask_id
            parts.append(replace(part, input_ids=ids))
        return replace(episode, support=parts[0], query=parts[1])

    found = audit_of(changed(sentences(tokenizer), add_masks), tokenizer)
    assert "number of masks" in found.above_chance


def test_exact_copies_are_counted(tokenizer: TextTokenizer) -> None:
    def copy(episode: Episode) -> Episode:
        return with_query(episode, input_ids=episode.support.input_ids, lengths=episode.support.lengths)

    found = audit_of(changed(sentences(tokenizer), copy), tokenizer)
    assert found.exact_copies == found.n_query == 9 * N_TASKS
    assert any("equal another context of their task" in problem for problem in found.problems)


@pytest.mark.parametrize(("n_changed", "n_near"), [(1, 9), (2, 9), (3, 0)])
def test_near_copies_are_counted(tokenizer: TextTokenizer, n_changed: int, n_near: int) -> None:
    def copy(episode: Episode) -> Episode:
        ids = episode.support.input_ids.clone()
        ids[:, :n_changed] = torch.arange(len(ids) * n_changed).view(len(ids), n_changed) + 5
        return with_query(episode, input_ids=ids.roll(0, 1), lengths=episode.support.lengths)

    found = audit_of(changed(sentences(tokenizer), copy), tokenizer)
    assert found.exact_copies == 0
    assert abs(found.near_copies - n_near * N_TASKS) <= 2
    assert any("by at most 2 tokens" in problem for problem in found.problems) == (n_near > 0)


def test_visible_class_words_are_counted(tokenizer: TextTokenizer) -> None:
    tasks = changed(sentences(tokenizer), lambda episode: replace(episode, words=(WORDS[0], "absent", "lacking")))
    found = audit_of(tasks, tokenizer)
    # each sentence contains 12 of the 15 words
    assert found.visible.keys() == {WORDS[0]}
    assert 0.7 < found.visible.total() / found.n_contexts < 0.9
    assert any("show a class word unmasked ('apple')" in problem for problem in found.problems)


def test_tasks_with_unbalanced_labels_are_counted(tokenizer: TextTokenizer) -> None:
    def relabel(episode: Episode) -> Episode:
        labels = episode.query.labels.clone()
        labels[0] = 2
        return with_query(episode, labels=labels)

    assert audit_of(changed(sentences(tokenizer), relabel), tokenizer).unbalanced == N_TASKS


def test_shortcut_accuracy_is_chance_if_all_contexts_are_equal(tokenizer: TextTokenizer) -> None:
    episode = sentences(tokenizer).sample(0, 0)
    one = np.ones((9, 1), dtype=np.int64)
    assert (shortcut_hits(one, one, episode) == 1 / 3).all()
    labels = episode.support.labels.numpy()[:, None]
    assert shortcut_hits(labels, episode.query.labels.numpy()[:, None], episode).all()


def test_a_shortcut_in_a_single_word_is_not_a_problem() -> None:
    """One of eight words happens to have contexts of one length, which recur in many tasks."""
    assert not _is_above_chance([[0.6] * 500, *[[0.0] * 500] * 7], chance=1 / 3)
    assert _is_above_chance([[0.1, 0.3]] * 8, chance=1 / 3)
    assert not _is_above_chance([[0.02]] * 500, chance=1 / 3)
