"""The pool index agrees with the corpus index, and tasks are built from pools."""

from pathlib import Path

import numpy as np
import pytest

from pico_ds.config import RunConfig, SmlmtConfig, parse_config
from pico_ds.data.corpus import open_corpus
from pico_ds.data.text.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from pico_ds.data.token_stream import TokenStream
from pico_ds.errors import TaskError
from pico_ds.tasks.index.class_words import ClassWords
from pico_ds.tasks.index.corpus_word_index import WordIndex
from pico_ds.tasks.index.pool_word_index import TokenIndex, TokenWords
from pico_ds.tasks.index.token_word_boundaries import CONTINUES_RUN, TokenClasses
from pico_ds.tasks.masked_word_tasks import SMLMT
from pico_ds.tasks.pooled_tasks import PooledTasks
from pico_ds.tasks.task_builder import TaskBuilder
from tests.shards import write_shards

#: joined words, line breaks, full stops, numbers, words of several tokens and non-ASCII letters
SENTENCES = [
    "The cat sat; the well-fed cat's dog (a dog) ran.",
    "U.S. cats run 20th street. Dogs! Cat\ncat dog\n\nDog",
    "don't run dog.cat cat. dog",
    "Café cats naïve cat,dog cat",
    "unfathomable cat circumlocution dog",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([" ".join(["cat dog Cat Dog cats run the The street a ran sat"] * 50), *SENTENCES], 320, directory)
    return load_tokenizer(directory)


def tokens_of(tokenizer: TextTokenizer, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(SENTENCES, 6)) for _ in range(60)]
    tokens = [token for ids in tokenizer.encode(documents) for token in (*ids, tokenizer.end_of_text_id)]
    return np.array(tokens[: len(tokens) // width * width], dtype=np.uint16)


@pytest.mark.parametrize("context", ["window", "sentence"])
def test_a_row_is_indexed_like_a_stream(tokenizer: TextTokenizer, context: str) -> None:
    """Single-token words have the same positions and contexts in both indexes."""
    tokens = tokens_of(tokenizer, 1)
    classes = TokenClasses.of(tokenizer)
    config = SmlmtConfig.model_validate({"min_word_freq": 1, "max_word_freq": 10**6, "context": context})
    ends = np.append(np.flatnonzero(tokens == tokenizer.end_of_text_id) + 1, len(tokens))
    stream = TokenStream(tokens, np.unique(ends))
    lexicon = ClassWords.build(stream, TokenStream(tokens[:0], np.array([0])), classes)
    whole = WordIndex(stream, lexicon, classes, config)
    words = TokenWords.of(classes)
    pool = TokenIndex(tokens[None], words, config)
    assert {"cat", "dog", "run", "the"} <= set(words.words)
    found = 0
    for word, text in enumerate(words.words):
        actual = pool.positions[pool.occurrences(word)]
        expected = np.empty(0, dtype=np.int64)
        if text in lexicon.words:
            occurrences = np.arange(*whole.occurrences(lexicon.words.index(text)).indices(len(whole.positions)))
            expected = whole.positions[occurrences]
            # the pool index does not contain words of several tokens or the last token of a row
            following = np.minimum(expected + 1, len(tokens) - 1)
            one = (classes.token_flags(tokens[None], at_edges=False)[0, following] & CONTINUES_RUN) == 0
            kept = one & (expected < len(tokens) - 1)
            expected, occurrences = expected[kept], occurrences[kept]
            here = np.arange(*pool.occurrences(word).indices(len(pool.positions)))
            for ours, other in zip(pool.contexts(here), whole.contexts(occurrences), strict=True):
                assert np.array_equal(ours, other)
        assert np.array_equal(actual, expected), text
        found += len(actual)
    assert found > 1000
    places = np.arange(len(tokens) - 1)
    expected_words, actual_words = whole.words_at(places), pool.words_at(places)
    single = actual_words >= 0
    actual_texts = np.array([*words.words])[actual_words[single]]
    assert np.array_equal(actual_texts, np.array(lexicon.words)[expected_words[single]])


def test_contexts_and_words_do_not_cross_rows(tokenizer: TextTokenizer) -> None:
    """A word at the edge of a row is not indexed, because it may be part of a longer word."""
    cat, run = tokenizer.encode([" cat"])[0], tokenizer.encode([" run"])[0]
    bare = tokenizer.encode(["cat"])[0]
    assert len(cat) == len(run) == len(bare) == 1
    rows = np.array([[*bare, *cat, *run, *cat], [*cat, *run, *run, *cat]], dtype=np.uint16)
    words = TokenWords.of(TokenClasses.of(tokenizer))
    config = SmlmtConfig(min_word_freq=1, context_tokens=4)
    index = TokenIndex(rows, words, config)
    assert index.positions[index.occurrences(words.words.index("cat"))].tolist() == [1, 4]
    assert index.positions[index.occurrences(words.words.index("run"))].tolist() == [2, 5, 6]
    starts, ends = index.contexts(np.arange(5))
    assert {*zip(starts.tolist(), ends.tolist(), strict=True)} == {(0, 4), (4, 8)}


def test_disjoint_contexts_match_a_greedy_count(tokenizer: TextTokenizer) -> None:
    tokens = tokens_of(tokenizer, 50)
    words = TokenWords.of(TokenClasses.of(tokenizer))
    index = TokenIndex(tokens.reshape(-1, 50), words, SmlmtConfig(min_word_freq=1, context_tokens=8))
    for at_least in (1, 2, 7, 30, 200):
        for word, enough in enumerate(index.disjoint_contexts(np.arange(len(words.words)), at_least)):
            found, end = 0, -1
            occurrences = np.arange(*index.occurrences(word).indices(len(index.positions)))
            for start, stop in zip(*(bounds.tolist() for bounds in index.contexts(occurrences)), strict=True):
                if start >= end:
                    found, end = found + 1, stop
            assert enough == (found >= at_least)


def run_config(directory: Path, *overrides: str) -> RunConfig:
    paths, tokenizer = write_shards(directory, n_shards=4, rows_per_shard=[400])
    return parse_config(
        f"data: {{source: shards, paths: {[str(path) for path in paths]}, tokenizer: {tokenizer}, sequence_length: 32, "
        f"cache_dir: {directory}/cache}}\nmodel: {{max_seq_len: 64}}\n"
        "smlmt: {n_way: 3, k_shot: 2, q_query: 2, context_tokens: 8, min_word_freq: 20, warmup_steps: 4, "
        "pool_steps: 3, pool_rows: 300, validation_word_fraction: 0.25, test_word_fraction: 0.25}",
        overrides,
    )


def test_tasks_follow_the_pools_and_depend_only_on_step_and_index(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    builder = TaskBuilder(config, open_corpus(config.data))
    tasks = builder.training()
    assert isinstance(tasks, PooledTasks)
    pools = [builder.texts.training(number) for number in range(3)]
    for step, number in ((0, 0), (4, 0), (6, 0), (7, 1), (9, 1), (10, 2), (6, 0), (12, 2)):
        text = pools[number]
        expected = SMLMT(text.index, text.vocabulary, open_corpus(config.data).tokenizer, config.smlmt, "train", 0, 0)
        for index in (0, 5):
            episode, expected_episode = tasks.sample(step, index), expected.sample(step, index)
            assert episode.words == expected_episode.words
            assert np.array_equal(episode.support.input_ids, expected_episode.support.input_ids)
    assert not np.array_equal(pools[0].index.tokens, pools[1].index.tokens)
    # earlier pools are dropped to free their memory
    assert set(tasks._pools) <= {2, 3}


def test_held_out_tasks_use_held_out_words_and_shards(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    builder = TaskBuilder(config, open_corpus(config.data))
    by_split = {split: builder.held_out(split) for split in ("validation", "test")}  # type: ignore[arg-type]
    training = builder.training().sample(4, 0).words
    names = {split: set(tasks.lexicon.words[word] for word in tasks.words) for split, tasks in by_split.items()}
    assert not names["validation"] & names["test"]
    assert not set(training) & (names["validation"] | names["test"])
    for split, tasks in by_split.items():
        episode = tasks.sample(0, 0)
        assert set(episode.words) <= names[split]
        assert tasks.index is builder.texts.held_out.index


def test_no_word_of_a_task_is_visible_in_its_contexts(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    corpus = open_corpus(config.data)
    tasks, tokenizer = TaskBuilder(config, corpus).training(), corpus.tokenizer
    for index in range(40):
        episode = tasks.sample(5, index)
        for part in (episode.support, episode.query):
            for ids, length in zip(part.input_ids, part.lengths.tolist(), strict=True):
                text = tokenizer.decode(ids[:length].tolist()).lower()
                assert "[mask]" in text
                words = {word.strip(".") for word in text.replace("[mask]", " ").split()}
                assert not words & set(episode.words)


def test_a_pool_that_is_too_small_fails(tmp_path: Path) -> None:
    config = run_config(tmp_path, "smlmt.pool_rows=2")
    with pytest.raises(TaskError, match=r"smlmt\.n_way: got 3, but only \d train words"):
        TaskBuilder(config, open_corpus(config.data)).training()


def test_a_context_that_spells_a_class_word_with_several_tokens_is_not_used(tokenizer: TextTokenizer) -> None:
    """Masking only finds words of one token, so a word in capitals would stay visible."""
    assert len(tokenizer.encode([" CAT"])[0]) > 1
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["cat", "dog", "run", "CAT", "DOG", "(,", ";", ":", "!", "?"], 400)) for _ in range(8)]
    encoded = tokenizer.encode(texts)
    rows = np.array([ids[: min(map(len, encoded))] for ids in encoded], dtype=np.uint16)
    words = TokenWords.of(TokenClasses.of(tokenizer))
    config = SmlmtConfig(
        n_way=2,
        k_shot=1,
        q_query=1,
        min_word_freq=3,
        max_word_freq=10_000,
        context_tokens=8,
        validation_word_fraction=0,
        test_word_fraction=0,
    )
    index = TokenIndex(rows, words, config)
    found = index.unmasked_words_at(np.arange(len(index.tokens)))
    spelled = [words.words[word] for word in found[found >= 0]]
    text = "".join(tokenizer.decode(row) for row in rows)
    assert abs(spelled.count("cat") - text.count("CAT")) <= len(rows)
    assert abs(spelled.count("dog") - text.count("DOG")) <= len(rows)
    tasks = SMLMT(index, index.lexicon, tokenizer, config, "train", 0, 0)
    shown = 0
    for number in range(100):
        episode = tasks.sample(0, number)
        for part in (episode.support, episode.query):
            for ids in part.input_ids.tolist():
                words_shown = tokenizer.decode(ids).lower()
                assert not any(f" {word} " in words_shown.replace("[mask]", " ") for word in episode.words)
                shown += "CAT" in tokenizer.decode(ids) or "DOG" in tokenizer.decode(ids)
    assert shown > 0, "words of other classes may be spelled with several tokens"
