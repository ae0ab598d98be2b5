"""Tests reading of CoNLL files, and fine-tuning on tagged sentences."""

from pathlib import Path

import pytest
import torch

from pico_ds.config import MetaConfig, ModelConfig
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.errors import DataError
from pico_ds.evaluation.conll_files import TaggedSentence, read_conll
from pico_ds.evaluation.few_shot_tables import ner_table
from pico_ds.evaluation.token_classification import FineTuning, Mode, Splits, fine_tune
from pico_ds.evaluation.word_features import encode_sentences
from pico_ds.meta.meta_model_builder import build_meta_model


def test_columns_may_be_separated_by_tabs_or_spaces_and_numbered(tmp_path: Path) -> None:
    expected = [
        TaggedSentence(("New", "York", "sleeps"), ("B-LOC", "I-LOC", "O")),
        TaggedSentence(("Ann", "."), ("B-PER", "O")),
    ]
    plain, numbered = tmp_path / "plain.conll", tmp_path / "numbered.iob2"
    plain.write_text("-DOCSTART- -X- O\n\nNew NNP B-LOC\nYork NNP I-LOC\nsleeps VB O\n\n\nAnn NNP B-PER\n. . O")
    numbered.write_text(
        "# text\n1\tNew\tB-LOC\t-\t-\n2\tYork\tI-LOC\t-\t-\n3\tsleeps\tO\t-\t-\n\n1\tAnn\tB-PER\n2\t.\tO\n\n"
    )
    assert read_conll(plain) == read_conll(numbered) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("22 CD B-NP O\nmen NNS I-NP O\n", ("22", "men")),
        ("In IN O\n1996 CD O\n", ("In", "1996")),
        ("1\tCD\tO\nman\tNN\tO\n\n1\tCD\tO\n2\tCD\tO\n", ("1", "man")),
        ("buy O\n#zebras O\n# O\nnow O\n", ("buy", "#zebras", "#", "now")),
        ("# of two words\n#zebras O\nrun O\n", ("#zebras", "run")),
        ("\ufeffAnn B-PER\n. O\n", ("Ann", ".")),
        ("a\u2028b\tO\nc\x85d\tO\n", ("a\u2028b", "c\x85d")),
    ],
    ids=["number first", "number later", "counts in one sentence", "hashes", "comment", "byte order mark", "U+2028"],
)
def test_words_that_look_like_numbers_or_comments_are_read_as_words(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "own.conll"
    path.write_text(text, encoding="utf-8")
    assert read_conll(path)[0].words == words


def test_entities_that_begin_with_i_are_read_as_b_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "iob1.conll"
    path.write_text("the O\nNew I-LOC\nYork I-LOC\nParis B-LOC\nAnn I-PER\n\nYork I-LOC\n")
    first, second = read_conll(path)
    assert first.tags == ("O", "B-LOC", "I-LOC", "B-LOC", "B-PER")
    assert second.tags == ("B-LOC",)
    assert "3 entities begin with I- (the first at line 2)" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("New B-LOC\nYork\n", r"bad.conll:2: got 'York'; expected a word and, in the last column, a tag"),
        ("New LOC\n", r"bad.conll:1: got 'New LOC'"),
        ("# nothing\n\n", "contains no sentence"),
    ],
)
def test_errors_name_the_bad_line_or_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.conll"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_conll(path)
    with pytest.raises(DataError, match="cannot read"):
        read_conll(tmp_path / "none.conll")


def sentences(count: int, offset: int = 0) -> list[TaggedSentence]:
    """Sentences with one entity each: a two-word animal or a one-word tool."""
    found = []
    for number in range(offset, offset + count):
        name, tags = (("apple", "castle"), ("B-ANI", "I-ANI")) if number % 2 else (("hammer",), ("B-TOOL",))
        found.append(TaggedSentence(("bridge", str(number), *name, "garden"), ("O", "O", *tags, "O")))
    return found


def test_the_label_of_a_word_is_at_its_last_token(tokenizer: TextTokenizer) -> None:
    (one,) = encode_sentences(
        [TaggedSentence(("hammer", "5"), ("B-TOOL", "O"))], tokenizer, ["B-TOOL", "O"], max_length=40
    )
    words = tokenizer.encode(["hammer", " 5"])
    assert one.ids.tolist() == words[0] + words[1]
    assert one.last.tolist() == [len(words[0]) - 1, len(words[0]) + len(words[1]) - 1]
    (cut,) = encode_sentences(
        [TaggedSentence(("hammer", "5"), ("B-TOOL", "O"))], tokenizer, ["B-TOOL", "O"], len(words[0])
    )
    assert cut.labels.tolist() == [0], "a word that does not fit is dropped"


@pytest.mark.parametrize("mode", ["head", "full"])
def test_fine_tuning_learns_is_deterministic_and_keeps_the_decoder(mode: Mode, tokenizer: TextTokenizer) -> None:
    shape = ModelConfig(d_model=48, n_layers=1, attention_n_heads=4, attention_n_kv_heads=2, activation_hidden_dim=96)
    decoder = build_meta_model(shape, MetaConfig(), 2, tokenizer.vocab_size, seed=0).decoder.requires_grad_(False)
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    splits = Splits(sentences(40), sentences(10, 40), sentences(10, 50))
    settings = FineTuning(max_steps=150, min_steps=50, patience_steps=30, batch_size=4, head_lr=3e-2, body_lr=3e-3)
    first, again = (fine_tune(decoder, tokenizer, splits, mode, 0, 64, settings) for _ in range(2))
    assert first == again, "the result depends only on the seed"
    assert first.f1 > 0.9
    assert all(torch.equal(before[name], weight) for name, weight in decoder.state_dict().items())


def test_the_set_of_a_sentence_depends_only_on_its_words() -> None:
    many = sentences(400)
    first, fewer, twice = Splits.of_one(many), Splits.of_one(many[::2]), Splits.of_one([*many, *many])
    assert [len(part) / 400 for part in (first.train, first.dev, first.test)] == pytest.approx(
        [0.7, 0.15, 0.15], abs=0.05
    )
    assert first.tags == ["B-ANI", "B-TOOL", "I-ANI", "O"]
    for name in ("train", "dev", "test"):
        whole = [one.words for one in getattr(first, name)]
        assert {one.words for one in getattr(fewer, name)} <= {*whole}, "other sentences in the file do not matter"
        assert sorted(one.words for one in getattr(twice, name)) == sorted(2 * whole), "no sentence is in two sets"


@pytest.mark.parametrize(
    ("train", "dev", "test", "message"),
    [
        (4, 0, 4, "the dev set has 0 sentences and no entity"),
        (4, 4, 0, "the test set has 0 sentences and no entity"),
        (0, 4, 4, "the train set has 0 sentences"),
    ],
)
def test_sets_without_entities_fail(train: int, dev: int, test: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Splits(sentences(train), sentences(dev), sentences(test))
    plain = [TaggedSentence(("no", "name"), ("O", "O"))]
    with pytest.raises(DataError, match="the test set has 1 sentences and no entity, so F1 is undefined"):
        Splits(sentences(4), sentences(4), plain)


def test_fine_tuning_runs_for_the_minimum_steps_and_marks_the_maximum(tokenizer: TextTokenizer) -> None:
    shape = ModelConfig(d_model=48, n_layers=1, attention_n_heads=4, attention_n_kv_heads=2, activation_hidden_dim=96)
    decoder = build_meta_model(shape, MetaConfig(), 2, tokenizer.vocab_size, seed=0).decoder.requires_grad_(False)
    splits = Splits(sentences(40), sentences(10, 40), sentences(10, 50))
    # an epoch has three steps, so F1 is 0 in the first epochs even though the model learns
    found = fine_tune(decoder, tokenizer, splits, "head", 0, 64)
    assert found.steps >= FineTuning().min_steps
    assert found.f1 > 0.9
    cut = fine_tune(decoder, tokenizer, splits, "head", 0, 64, FineTuning(max_epochs=1, max_steps=60))
    assert (cut.steps, cut.at_limit) == (60, True)
    table = ner_table({"trained, head": [found, cut]}, "F1")
    assert "60*" in next(iter(table.columns[3].cells))
    assert "stopped at the maximum number of steps" in str(table.caption)
