"""The rules of SMLMT, checked on the decoded text of random corpora."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pico_ds.config import Readout, SmlmtConfig
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.errors import TaskError
from pico_ds.tasks.context_sampling import Documents
from pico_ds.tasks.episode import Contexts
from pico_ds.tasks.index.class_words import WORD_SPLITS, word_split
from pico_ds.tasks.masked_word_tasks import SMLMT
from tests.unit.tasks.conftest import WORDS, MakeTasks

READOUTS: tuple[Readout, ...] = ("fim", "pre", "fimpre", "mask", "last", "mean")


def numbered_corpus(seed: int, n_documents: int = 12) -> list[str]:
    """Random words with a unique number after each, so that two contexts overlap only if they share a number."""
    rng = np.random.default_rng(seed)
    documents, number = [], 0
    for _ in range(n_documents):
        parts = []
        for _ in range(120):
            word = str(rng.choice(WORDS))
            form = rng.choice([word, word.title(), word.upper(), f'"{word}"', f"self-{word}", f"{word}."])
            parts.append(f"{form} {number}")
            number += 1
            if rng.random() < 0.2:
                parts[-1] += rng.choice(["!", "?", ".", "\n"])
        documents.append(" ".join(parts))
    return documents


def rows(contexts: Contexts, tokenizer: TextTokenizer) -> list[str]:
    return [
        tokenizer.decode(ids[:length].tolist())
        for ids, length in zip(contexts.input_ids, contexts.lengths.tolist(), strict=True)
    ]


configs = st.fixed_dictionaries(
    {
        "n_way": st.integers(2, 5),
        "k_shot": st.integers(1, 3),
        "q_query": st.integers(1, 3),
        "context": st.sampled_from(["window", "sentence"]),
        "context_tokens": st.integers(12, 32),
        "readout": st.sampled_from(READOUTS),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpus_seed=st.integers(0, 10**6), step=st.integers(0, 10**9), index=st.integers(0, 10**4), values=configs)
def test_a_task_satisfies_every_rule(
    corpus_seed: int, step: int, index: int, values: dict[str, Any], make_tasks: MakeTasks, tokenizer: TextTokenizer
) -> None:
    config = SmlmtConfig(min_word_freq=3, validation_word_fraction=0.1, test_word_fraction=0.1, **values)
    documents = numbered_corpus(corpus_seed)
    try:
        tasks = make_tasks(documents, config, seed=corpus_seed)
        episode = tasks.sample(step, index)
    except TaskError:
        return  # the corpus is too small for these settings

    n_way, words = config.n_way, episode.words
    assert len(set(words)) == n_way
    assert all(word_split(word, config, 0) == "train" for word in words)
    lower = [document.lower() for document in documents]
    numbers: list[set[str]] = []
    for contexts, per_class in ((episode.support, config.k_shot), (episode.query, config.q_query)):
        assert torch.bincount(contexts.labels, minlength=n_way).tolist() == [per_class] * n_way
        assert contexts.input_ids.shape == (n_way * per_class, tasks.sequence_length)
        for i, text in enumerate(rows(contexts, tokenizer)):
            word = words[int(contexts.labels[i])]
            length, readout = int(contexts.lengths[i]), int(contexts.readout_index[i])
            real, padding = contexts.input_ids[i, :length], contexts.input_ids[i, length:]
            assert (padding == tokenizer.pad_id).all()
            assert (real != tokenizer.pad_id).all()
            assert 0 <= readout < length
            # the word itself is masked at every occurrence, and no other word of the task is there
            assert "[MASK]" in text
            for other in words:
                assert not re.search(rf"(?<![a-z]){other}(?![a-z])", text.lower())
            separator = "<|endoftext|>"
            if config.readout in ("fim", "fimpre"):
                assert int(real[-1]) == tokenizer.mask_id
                assert readout == length - (1 if config.readout == "fim" else 2)
                suffix, prefix = text.removesuffix("[MASK]").split(separator, 1)
                text = prefix + "[MASK]" + suffix
            elif config.readout == "pre":
                assert int(real[readout + 1]) == tokenizer.mask_id
                text = text.removeprefix(separator)
            elif config.readout == "mask":
                assert int(real[readout]) == tokenizer.mask_id
            # unmasking restores the text of the corpus
            original = re.escape(text.lower()).replace(re.escape("[mask]"), rf"\s?{word}")
            found = re.compile(original)
            assert any(found.search(document + separator) for document in lower), (text, word)
            numbers.append(set(re.findall(r"(?<!\d)\d+(?!\d)", " ".join(text.split()[1:-1]))))
    # no two contexts of a task overlap in the corpus
    for i, mine in enumerate(numbers):
        for theirs in numbers[:i]:
            assert not mine & theirs


def test_a_task_is_a_pure_function_of_seed_step_and_index(make_tasks: MakeTasks) -> None:
    config = SmlmtConfig(n_way=3, k_shot=2, q_query=2, min_word_freq=3)
    documents = numbered_corpus(0)
    one, other = make_tasks(documents, config), make_tasks(documents, config)
    other.sample(9, 9)  # sampling has no state
    for step, index in ((0, 0), (5, 1), (0, 0)):
        a, b = one.sample(step, index), other.sample(step, index)
        assert a.words == b.words
        assert torch.equal(a.support.input_ids, b.support.input_ids)
        assert torch.equal(a.query.input_ids, b.query.input_ids)
    differs = make_tasks(documents, config, seed=1)
    draws = {(tasks.sample(s, i).words) for tasks in (one, differs) for s in range(3) for i in range(3)}
    assert len(draws) > 10


def test_labels_are_a_random_permutation(make_tasks: MakeTasks) -> None:
    tasks = make_tasks(numbered_corpus(0), SmlmtConfig(n_way=3, k_shot=1, q_query=1, min_word_freq=3))
    labels_of: dict[str, set[int]] = {}
    for i in range(60):
        for label, word in enumerate(tasks.sample(0, i).words):
            labels_of.setdefault(word, set()).add(label)
    assert all(labels == {0, 1, 2} for labels in labels_of.values())


def test_readouts_change_the_encoding_but_not_the_task(make_tasks: MakeTasks, tokenizer: TextTokenizer) -> None:
    documents = numbered_corpus(1)
    texts = {}
    for readout in READOUTS:
        config = SmlmtConfig(n_way=3, k_shot=2, q_query=2, min_word_freq=3, readout=readout)
        episode = make_tasks(documents, config).sample(3, 4)
        texts[readout] = (episode.words, [sorted(row.split()) for row in rows(episode.support, tokenizer)])
    assert len({words for words, _ in texts.values()}) == 1
    assert texts["mask"] == texts["last"] == texts["mean"]


def test_splits_are_disjoint_and_words_outside_the_range_are_never_classes(make_tasks: MakeTasks) -> None:
    config = SmlmtConfig(
        n_way=2, k_shot=1, q_query=1, min_word_freq=3, validation_word_fraction=0.3, test_word_fraction=0.3
    )
    documents = [*numbered_corpus(0), "rareword 1 rareword 2"]
    pools = [set(make_tasks(documents, config, split).words.tolist()) for split in WORD_SPLITS]
    assert sum(map(len, pools)) == len(set.union(*pools))
    tasks = make_tasks(documents, config)
    ids = {word: i for i, word in enumerate(tasks.lexicon.words)}
    assert ids["rareword"] not in set.union(*pools)


def test_too_few_words_fail_with_the_setting(make_tasks: MakeTasks) -> None:
    with pytest.raises(TaskError, match=r"smlmt.n_way: got 50, but only \d+ train words"):
        make_tasks(numbered_corpus(0), SmlmtConfig(n_way=50, k_shot=1, q_query=1, min_word_freq=1))


def test_words_with_too_many_tokens_for_a_context_fail(make_tasks: MakeTasks) -> None:
    documents = [" ".join(["zzxxqqkkvv vvxxkkqqzz"] * 20)]
    with pytest.raises(TaskError, match=r"only 0 train words have.*at most 4 tokens"):
        make_tasks(documents, all_words(n_way=2, k_shot=1, q_query=1, context_tokens=8))


def test_words_that_always_occur_together_fail_instead_of_looping(make_tasks: MakeTasks) -> None:
    documents = [" ".join(f"apple bridge {i}." for i in range(200))]
    config = SmlmtConfig(
        n_way=2, k_shot=1, q_query=1, min_word_freq=3, validation_word_fraction=0, test_word_fraction=0
    )
    tasks: SMLMT = make_tasks(documents, config)
    with pytest.raises(TaskError, match="contexts each that contain none of the other words"):
        tasks.sample(0, 0)


#: words with different numbers of tokens
LONG_WORDS = ["apple", "castle", "kettle", "magnetism", "hammerhead", "orangeness"]


def words_apart(gap: int, repeats: int, n_documents: int = 8) -> list[str]:
    """Each word several times in a row, with random punctuation between the words."""
    rng = np.random.default_rng(0)
    signs = lambda: " ".join(rng.choice([*",;:!?"], gap))  # noqa: E731
    return [
        " ".join(f"{word} {signs()}" for word in rng.choice(LONG_WORDS, 60) for _ in range(repeats))
        for _ in range(n_documents)
    ]


def all_words(**settings: Any) -> SmlmtConfig:
    return SmlmtConfig(min_word_freq=3, validation_word_fraction=0, test_word_fraction=0, **settings)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("context_tokens", [15, 16])
def test_the_shape_of_a_context_does_not_reveal_the_token_count_of_its_word(
    make_tasks: MakeTasks, tokenizer: TextTokenizer, readout: Readout, context_tokens: int
) -> None:
    config = all_words(n_way=3, k_shot=2, q_query=2, context_tokens=context_tokens, readout=readout)
    tasks = make_tasks(words_apart(gap=20, repeats=1), config)
    assert len({len(tokenizer.encode([f" {word}"])[0]) for word in LONG_WORDS}) >= 3
    shapes: dict[str, set[tuple[int, int, int]]] = {word: set() for word in LONG_WORDS}
    for index in range(150):
        episode = tasks.sample(0, index)
        contexts = episode.support
        for row, length, place, label in zip(
            contexts.input_ids.tolist(),
            contexts.lengths.tolist(),
            contexts.readout_index.tolist(),
            contexts.labels.tolist(),
            strict=True,
        ):
            separator = row.index(tokenizer.end_of_text_id) if tokenizer.end_of_text_id in row else -1
            shapes[episode.words[label]].add((length, place, separator))
    # all contexts have one shape, except those of the first word of a document, which has no left context
    assert set.intersection(*shapes.values())
    assert len(set.union(*shapes.values())) <= 2, shapes


def test_every_occurrence_of_a_word_counts_as_one_token(make_tasks: MakeTasks) -> None:
    tasks = make_tasks(
        words_apart(gap=2, repeats=3), all_words(n_way=2, k_shot=1, q_query=1, context_tokens=8, readout="mask")
    )
    lengths = np.array([length for i in range(60) for length in tasks.sample(0, i).support.lengths.tolist()])
    # a context is shorter only if its bounds would cut another word
    assert lengths.max() == 8
    assert np.mean(lengths == 8) > 0.4


def test_no_two_contexts_of_a_task_are_equal(make_tasks: MakeTasks) -> None:
    rng = np.random.default_rng(0)
    sentences = [
        f"the {word} is near {other}." for word in WORDS[:6] for other in ("rivers", "roads", "hills", "lakes")
    ]
    documents = [" ".join(rng.choice(sentences, 60)) for _ in range(12)]
    tasks = make_tasks(documents, all_words(n_way=2, k_shot=1, q_query=1, max_word_freq=400, context="sentence"))
    for index in range(100):
        episode = tasks.sample(0, index)
        found = [*episode.support.input_ids.tolist(), *episode.query.input_ids.tolist()]
        assert len({tuple(row) for row in found}) == len(found)


@pytest.mark.parametrize("documents", ["same", "different"])
def test_words_are_sampled_uniformly_if_documents_are_restricted(
    make_tasks: MakeTasks, tokenizer: TextTokenizer, documents: Documents
) -> None:
    """Words in few documents are classes as often as words in many documents."""
    rng = np.random.default_rng(0)
    texts = []
    for number in range(40):
        # half of the words occur in only two documents
        there = [word for place, word in enumerate(WORDS) if place < 8 or number % 20 == place]
        texts.append(" ".join(f"{word} {' '.join(rng.choice([*',;:!?'], 30))}" for word in rng.permutation(there * 8)))
    config = all_words(n_way=3, k_shot=3, q_query=3, context_tokens=8, max_word_freq=10_000)
    whole = make_tasks(texts, config)
    tasks = SMLMT(whole.index, whole.lexicon, tokenizer, config, "train", 0, 0, documents=documents)
    assert len(tasks.words) > 10
    counts = Counter(word for index in range(400) for word in tasks.choose(0, index)[0].tolist())
    shares = [counts[word] * len(tasks.words) / (400 * 3) for word in tasks.words.tolist()]
    assert min(shares) > 0.45
    assert max(shares) < 1.5
