"""Shapes and classes of tasks: ranges, curriculum, and sampling of words."""

from collections import Counter

import numpy as np
import pytest
import torch

from pico_ds.config import ConfigError, SmlmtConfig, parse_config
from pico_ds.errors import TaskError
from pico_ds.tasks.masked_word_tasks import SMLMT
from pico_ds.tasks.task_shape import TaskShape, TaskShapes
from tests.unit.tasks.conftest import WORDS, MakeTasks
from tests.unit.tasks.test_masked_word_tasks import numbered_corpus


def test_every_task_samples_its_shape_from_the_ranges() -> None:
    shapes = TaskShapes(SmlmtConfig(n_way=[2, 4], k_shot=[1, 3], q_query=2), seed=0)
    sampled = Counter(
        (shapes.at(step, index).n_way, shapes.at(step, index).k_shot) for step in range(60) for index in range(30)
    )
    assert set(sampled) == {(n_way, k_shot) for n_way in (2, 3, 4) for k_shot in (1, 2, 3)}
    assert min(sampled.values()) > 0.75 * max(sampled.values())
    assert shapes.largest == TaskShape(4, 3, 2)
    assert [shapes.at(7, i) for i in range(50)] == [TaskShapes(shapes._config, 0).at(7, i) for i in range(50)]
    assert [shapes.at(7, i) for i in range(50)] != [TaskShapes(shapes._config, 1).at(7, i) for i in range(50)]
    five = [shapes.at(3, index) for index in range(5)]
    assert shapes.contexts(3, 5) == (sum(s.n_way * s.k_shot for s in five), sum(s.n_way * 2 for s in five))


def test_a_curriculum_widens_the_ranges_from_the_easiest_shape() -> None:
    config = SmlmtConfig(n_way=[2, 10], k_shot=[1, 5], warmup_steps=100, curriculum_steps=200)
    shapes = TaskShapes(config, seed=0)

    def seen(step: int) -> tuple[set[int], set[int]]:
        found = [shapes.at(step, index) for index in range(400)]
        return {shape.n_way for shape in found}, {shape.k_shot for shape in found}

    assert seen(100) == ({2}, {5})
    assert seen(200) == ({2, 3, 4, 5, 6}, {3, 4, 5})
    assert seen(300) == seen(5000) == (set(range(2, 11)), {1, 2, 3, 4, 5})


def test_tasks_have_the_sampled_shapes(make_tasks: MakeTasks) -> None:
    config = SmlmtConfig(n_way=[2, 4], k_shot=[1, 3], q_query=2, min_word_freq=3)
    tasks = make_tasks(numbered_corpus(0), config)
    for index in range(20):
        episode, shape = tasks.sample(9, index), tasks.shapes.at(9, index)
        assert torch.bincount(episode.support.labels).tolist() == [shape.k_shot] * shape.n_way
        assert torch.bincount(episode.query.labels).tolist() == [2] * shape.n_way
        assert len(episode.words) == len(episode.word_tokens) == shape.n_way


def test_word_tokens_spell_the_words(make_tasks: MakeTasks, tokenizer) -> None:
    episode = make_tasks(numbered_corpus(0), SmlmtConfig(n_way=4, k_shot=1, q_query=1, min_word_freq=3)).sample(0, 0)
    for word, tokens in zip(episode.words, episode.word_tokens.tolist(), strict=True):
        assert tokenizer.decode(token for token in tokens if token >= 0) == f" {word}"


def skewed_corpus() -> list[str]:
    """Two groups of words with different neighbors. In each group the word frequency decreases."""
    rng = np.random.default_rng(0)
    animals, tools = WORDS[:8], WORDS[8:15]
    documents = []
    for number in range(60):
        parts = []
        for kind, endings in ((animals, ["eats grass", "runs wild"]), (tools, ["is broken", "was sold"])):
            weights = 1.0 / np.arange(1, len(kind) + 1)
            for _ in range(30):
                word = rng.choice(kind, p=weights / weights.sum())
                parts.append(f"the {word} {rng.choice(endings)} {number} .")
        documents.append(" ".join(parts))
    return documents


def tasks_of(make_tasks: MakeTasks, **changes: object) -> SMLMT:
    common = {"n_way": 3, "k_shot": 1, "q_query": 1, "min_word_freq": 3, "context_tokens": 12}
    held_out = {"validation_word_fraction": 0.0, "test_word_fraction": 0.0}
    return make_tasks(skewed_corpus(), SmlmtConfig.model_validate({**common, **held_out, **changes}))


def test_frequency_sampling_is_proportional_to_occurrences(make_tasks: MakeTasks) -> None:
    tasks = tasks_of(make_tasks, class_sampling="frequency")
    rng = np.random.default_rng(0)
    first = Counter(int(tasks._class_sampler.draw(rng, 1, progress=1.0)[0]) for _ in range(4000))
    counts = {int(word): len(tasks.index.positions[tasks.index.occurrences(int(word))]) for word in tasks.words}
    for word, count in counts.items():
        assert first[word] / 4000 == pytest.approx(count / sum(counts.values()), abs=0.025)
    assert max(counts.values()) > 5 * min(counts.values())
    early = Counter(int(tasks._class_sampler.draw(rng, 1, progress=0.0)[0]) for _ in range(4000))
    assert max(early.values()) < 1.5 * min(early.values()), "the curriculum begins with uniform sampling"


def test_a_cluster_has_words_with_similar_neighbors(make_tasks: MakeTasks) -> None:
    uniform, clustered = ([], [])
    for kind, classes in (("uniform", uniform), ("cluster", clustered)):
        tasks = tasks_of(make_tasks, class_sampling=kind, cluster_size=4)
        classes += [tasks.sample(0, index).words for index in range(200)]

    def share_of_one_kind(tasks: list[tuple[str, ...]]) -> float:
        known = [task for task in tasks if set(task) <= set(WORDS)]
        return sum(len({WORDS.index(word) < 8 for word in task}) == 1 for task in known) / len(known)

    assert share_of_one_kind(uniform) < 0.4
    assert share_of_one_kind(clustered) > 0.9
    assert all(len(set(task)) == 3 for task in clustered)
    labels = Counter(task.index(WORDS[0]) for task in clustered if WORDS[0] in task)
    assert len(labels) == 3, "labels are in random order"


def test_invalid_shape_and_class_settings_fail(make_tasks: MakeTasks) -> None:
    for text, message in [
        ("n_way: [4, 2]", r"smlmt.n_way: got \[4, 2\]; write the minimum before the maximum"),
        ("k_shot: [1]", r"smlmt.k_shot: got \[1\]"),
        ("n_way: [1, 3]", "at least 2 classes"),
        ("class_sampling: cluster, cluster_size: 3", "smlmt.cluster_size: got 3, less than the 4 other classes"),
        ("inject: {ratoi: 0.5}", "smlmt.inject.ratoi: unknown key; did you mean smlmt.inject.ratio"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_config(f"smlmt: {{{text}}}")
    with pytest.raises(ConfigError, match=r"smlmt.n_way: got \[2, 3\] with meta.head: linear"):
        parse_config("{smlmt: {n_way: [2, 3]}, meta: {head: linear}}")
    with pytest.raises(TaskError, match="cluster_size: got 30, but the text has only"):
        make_tasks(
            numbered_corpus(0), SmlmtConfig(n_way=3, k_shot=1, q_query=1, min_word_freq=3, class_sampling="cluster")
        )
