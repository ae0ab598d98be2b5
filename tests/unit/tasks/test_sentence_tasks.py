"""Tasks over sentences that a user provides, and the errors for invalid sentences."""

import json
import re
from pathlib import Path

import pytest
import torch

from pico_ds.config import Readout, SmlmtConfig
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.errors import TaskError
from pico_ds.tasks.context_encoding import encode_context
from pico_ds.tasks.masked_word_tasks import SMLMT
from pico_ds.tasks.sentence_files import read_sentences
from pico_ds.tasks.sentence_tasks import SentenceTasks
from pico_ds.tasks.task_source import MixedTasks
from tests.unit.tasks.conftest import MakeTasks
from tests.unit.tasks.test_masked_word_tasks import READOUTS, numbered_corpus, rows

CONFIG = SmlmtConfig(n_way=3, k_shot=2, q_query=1, context_tokens=40, min_word_freq=3)
ANIMALS = ["zebra", "yak", "walrus", "viper"]


def by_word() -> list[dict[str, str]]:
    return [
        {
            "text": f"Number {number}: a {word} met a {word.upper()} at noon{' with a yak' * (number == 4)}.",
            "word": word,
        }
        for word in ANIMALS
        for number in range(5)
    ]


def by_label() -> list[dict[str, str]]:
    return [{"text": f"case {number} of {label} news", "label": label} for label in "abcd" for number in range(4)]


def test_every_occurrence_is_masked_and_no_other_class_is_present(tokenizer: TextTokenizer) -> None:
    tasks = SMLMT.from_sentences(by_word(), tokenizer, CONFIG)
    texts = {record["text"] for record in by_word()}
    for index in range(30):
        episode = tasks.sample(0, index)
        assert len(set(episode.words)) == 3
        assert set(episode.words) <= set(ANIMALS)
        seen = []
        for contexts, per_class in ((episode.support, 2), (episode.query, 1)):
            assert torch.bincount(contexts.labels).tolist() == [per_class] * 3
            for text, label in zip(rows(contexts, tokenizer), contexts.labels.tolist(), strict=True):
                suffix, prefix = text.removesuffix("[MASK]").split("<|endoftext|>")
                word = episode.words[label]
                assert text.count("[MASK]") in (2, 3)
                assert not re.search("|".join(episode.words), text.lower())
                original = prefix + "[MASK]" + suffix
                for occurrence in (word, word.upper(), word):
                    original = original.replace("[MASK]", f" {occurrence}", 1)
                assert original in texts
                seen.append(original)
        assert len(set(seen)) == len(seen), "support and query share no sentence"


@pytest.mark.parametrize("readout", READOUTS)
def test_a_sentence_is_encoded_like_a_context_of_the_corpus(
    readout: Readout, tokenizer: TextTokenizer, make_tasks: MakeTasks
) -> None:
    config = SmlmtConfig(n_way=2, k_shot=2, q_query=1, context_tokens=16, min_word_freq=1, readout=readout)
    tasks = make_tasks(numbered_corpus(1), config)
    plain = make_tasks(numbered_corpus(1), config.model_copy(update={"readout": "mask"}))
    for index in range(20):
        expected, unrotated = tasks.sample(0, index).support, plain.sample(0, index).support
        for row in range(len(expected.labels)):
            masked = unrotated.input_ids[row, : unrotated.lengths[row]].tolist()
            anchor = int(unrotated.readout_index[row])
            ids, length, place = encode_context(masked, anchor, readout, 16, tokenizer)
            assert torch.equal(ids, expected.input_ids[row])
            assert (length, place) == (int(expected.lengths[row]), int(expected.readout_index[row]))


def test_a_long_sentence_is_cut_around_its_word(tokenizer: TextTokenizer) -> None:
    tokens = [*range(100), tokenizer.mask_id, *range(100, 150)]
    for readout in READOUTS:
        ids, length, place = encode_context(tokens, 100, readout, 10, tokenizer)
        real = ids[:length].tolist()
        assert sorted(set(real) - {tokenizer.end_of_text_id, tokenizer.mask_id}) == [
            95,
            96,
            97,
            98,
            99,
            100,
            101,
            102,
            103,
        ]
        assert real.count(tokenizer.mask_id) == 1
        assert 0 <= place < length <= 11
    first, _, place = encode_context([tokenizer.mask_id, 5, 6], 0, "pre", 10, tokenizer)
    assert (first[0], place) == (tokenizer.end_of_text_id, 0)


def test_a_label_task_appends_a_mask_to_the_whole_sentence(tokenizer: TextTokenizer) -> None:
    tasks = SMLMT.from_sentences(by_label(), tokenizer, CONFIG)
    episode = tasks.sample(3, 1)
    for text, label in zip(rows(episode.query, tokenizer), episode.query.labels.tolist(), strict=True):
        assert re.fullmatch(rf"<\|endoftext\|>case \d of {episode.words[label]} news\[MASK\]", text)
    assert (episode.query.readout_index == episode.query.lengths - 1).all()


def test_a_sentence_task_is_a_pure_function_of_seed_step_and_index(tokenizer: TextTokenizer) -> None:
    first, again = (SMLMT.from_sentences(by_word(), tokenizer, CONFIG, seed=3) for _ in range(2))
    other = SMLMT.from_sentences(by_word(), tokenizer, CONFIG, seed=4)
    assert torch.equal(first.sample(5, 6).support.input_ids, again.sample(5, 6).support.input_ids)
    assert any(first.sample(5, i).words != other.sample(5, i).words for i in range(5))
    pairs = SMLMT.from_sentences([(one["text"], one["word"]) for one in by_word()], tokenizer, CONFIG, seed=3)
    assert pairs.sample(5, 6).words == first.sample(5, 6).words


def test_the_configured_share_of_tasks_is_injected(tokenizer: TextTokenizer, make_tasks: MakeTasks) -> None:
    config = CONFIG.model_copy(update={"context_tokens": 16})
    common = make_tasks(numbered_corpus(0), config)
    injected = SMLMT.from_sentences(by_word(), tokenizer, config)
    mixed = MixedTasks(common, injected, ratio=0.3, seed=0)
    injected_tasks = [set(mixed.sample(0, index).words) <= set(ANIMALS) for index in range(300)]
    assert injected_tasks == [mixed.is_injected(0, index) for index in range(300)]
    assert sum(injected_tasks) / 300 == pytest.approx(0.3, abs=0.08)
    first = injected_tasks.index(False)
    assert mixed.sample(0, first).words == common.sample(0, first).words, "all other tasks come from the corpus"


def test_duplicate_sentences_are_merged(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in by_word() * 2) + "\n\n")
    assert len(read_sentences(path)) == len(by_word())
    config = SmlmtConfig(n_way=3, k_shot=4, q_query=2)
    with pytest.raises(TaskError, match=r"0 classes have .* = 6 different sentences, but smlmt.n_way is 3 .*viper 5"):
        SentenceTasks(read_sentences(path), tokenizer, config, seed=0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a zebra", "word": "zebra"}', "{text: 1}"], r"own.jsonl:2: not JSON"),
        (['["zebra"]'], r"own.jsonl:1: got \['zebra'\]; expected an object with text"),
        (['{"txet": "a", "word": "b"}'], r"own.jsonl:1: unknown key 'txet'; did you mean 'text'\?"),
        (['{"text": "a zebra"}'], "own.jsonl:1: has neither word nor label; expected exactly one"),
        (['{"text": "a zebra", "word": "zebra", "label": "x"}'], "own.jsonl:1: has word and label"),
        (['{"text": "a zebra", "word": 3}'], "own.jsonl:1: word: got 3; expected a non-empty string"),
        (['{"text": " ", "word": "zebra"}'], "own.jsonl:1: text: got ' '; expected a non-empty string"),
        (['{"text": "zebras run", "word": "zebra"}'], "own.jsonl:1: the word 'zebra' is not in the text"),
        (
            ['{"text": "a", "label": "x"}', '{"text": "b c", "word": "c"}'],
            "own.jsonl:2: has 'word', but .*'label'",
        ),
        (
            ['{"text": "a", "label": "x"}', '{"text": "a", "label": "y"}'],
            r"1 texts have several labels(.|\n)*'x' at \S+own.jsonl:1, 'y' at \S+own.jsonl:2",
        ),
        ([""], "own.jsonl: has no sentences"),
        (['{"text": "a", "label": "x"}', "[" * 100_000], "own.jsonl:2: nested too deeply"),
        (['{"text": "a \\ud800 b", "label": "x"}'], r"own.jsonl:1: text: contains '\\ud800', half of a character"),
        (['{"text": "a b", "label": "x\\udfff"}'], r"own.jsonl:1: label: contains '\\udfff', half of a character"),
    ],
)
def test_an_error_names_the_line_of_a_bad_sentence(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(TaskError, match=message):
        read_sentences(path)
    with pytest.raises(TaskError, match=r"cannot read .*: No such file"):
        read_sentences(tmp_path / "none.jsonl")


def test_words_may_contain_symbols_spaces_and_special_letters(tokenizer: TextTokenizer) -> None:
    words = ["c++", "straße", "\u017fun", "new york", "(x)"]
    records = [
        {"text": f"{n} here {word} was, and {word.upper()} sun {n}", "word": word} for word in words for n in range(3)
    ]
    tasks = SMLMT.from_sentences(records, tokenizer, CONFIG)
    for index in range(10):
        episode = tasks.sample(0, index)
        assert set(episode.words) <= set(words)
        assert (episode.support.input_ids == tokenizer.mask_id).any(-1).all()


def test_words_in_each_others_sentences_fail(tokenizer: TextTokenizer) -> None:
    tangled = [{"text": f"{' '.join(ANIMALS)} {n}", "word": word} for word in ANIMALS for n in range(3)]
    tasks = SMLMT.from_sentences(tangled, tokenizer, CONFIG)
    with pytest.raises(TaskError, match="the given sentences: 1000 random samples found no 3 words with 3 sentences"):
        tasks.sample(0, 0)


def test_only_line_feeds_separate_lines(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    records = [{"text": f"one\u2028two\x85three {n}", "label": "x"} for n in range(2)]
    content = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("\ufeff" + content, encoding="utf-8")
    assert [sentence.text for sentence in read_sentences(path)] == [record["text"] for record in records]


@pytest.mark.parametrize("token", ["[MASK]", "[PAD]", "<|endoftext|>"])
def test_special_tokens_in_a_sentence_fail(token: str, tokenizer: TextTokenizer) -> None:
    for records in ([{"text": f"a {token} b", "label": "x"}], [{"text": f"a zebra {token}", "word": "zebra"}]):
        with pytest.raises(TaskError, match=rf"sentence 1: contains '{re.escape(token)}', which is a special token"):
            SMLMT.from_sentences(records, tokenizer, CONFIG)


def test_sentences_that_are_equal_after_cutting_are_merged(tokenizer: TextTokenizer) -> None:
    long = " and so on without an end" * 10
    same = [{"text": f"case of {label}{long} {n}", "label": label} for label in "abc" for n in range(3)]
    with pytest.raises(TaskError, match=r"0 classes have .* = 3 different .*a 1, b 1, c 1"):
        SMLMT.from_sentences(same, tokenizer, CONFIG)
    clash = [{"text": f"{long} {label}", "label": label} for label in "ab"]
    with pytest.raises(
        TaskError,
        match=r"1 texts have several labels \(equal texts after they are cut to smlmt.context_tokens = 40(.|\n)*"
        r"'a' at sentence 1, 'b' at sentence 2",
    ):
        SMLMT.from_sentences(clash, tokenizer, CONFIG)
    # different words in the same sentence are not a conflict: tasks distinguish exactly these
    words = [{"text": f"the {word} ran {n}", "word": word} for word in ANIMALS for n in range(3)]
    assert SMLMT.from_sentences(words, tokenizer, CONFIG).sample(0, 0).n_way == 3


def test_a_capital_letter_with_a_two_character_lower_case_is_found(tokenizer: TextTokenizer) -> None:
    words = ["\u0130stanbul", "ankara", "izmir"]
    records = [{"text": f"{n} here is {word} \u0130STANBUL {n}", "word": word} for word in words[:1] for n in range(3)]
    records += [{"text": f"{n} here is {word} {n}", "word": word} for word in words[1:] for n in range(3)]
    episode = SMLMT.from_sentences(records, tokenizer, CONFIG).sample(0, 0)
    assert set(episode.words) == {"istanbul", "ankara", "izmir"}
    counts = {
        episode.words[label]: ids.eq(tokenizer.mask_id).sum().item()
        for ids, label in zip(episode.support.input_ids, episode.support.labels.tolist(), strict=True)
    }
    assert counts == {"istanbul": 2, "ankara": 1, "izmir": 1}
    mixed = [*records, {"text": "ankara is not \u0130stanbul", "word": "ankara"}]
    tasks = SMLMT.from_sentences(mixed, tokenizer, CONFIG)
    for index in range(10):
        assert not any("stanbul" in text for text in rows(tasks.sample(0, index).query, tokenizer))


def test_a_letter_with_another_vowel_sign_is_a_different_word(tokenizer: TextTokenizer) -> None:
    """The vowel signs of Indic scripts are marks, not letters, but they belong to the word."""
    with pytest.raises(TaskError, match="is not in the text"):
        SMLMT.from_sentences([{"text": "राम की माँ", "word": "क"}], tokenizer, CONFIG)


def test_all_label_conflicts_are_listed_or_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"text": f"text {number}", "label": "a"} for number in range(5)]
    rows += [{"text": f"text {number}", "label": "b"} for number in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(TaskError, match="3 texts have several labels") as caught:
        read_sentences(path)
    assert str(caught.value).count("\n  - 'a' at ") == 3
    with caplog.at_level("WARNING", logger="pico_ds"):
        kept = read_sentences(path, on_conflict="drop")
    assert [sentence.text for sentence in kept] == ["text 3", "text 4"]
