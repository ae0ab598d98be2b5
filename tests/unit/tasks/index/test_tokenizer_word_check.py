"""Words from token ids equal those of Unicode segmentation, for every tokenizer family and many scripts."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.errors import TaskError
from pico_ds.tasks.index.token_word_boundaries import TokenClasses
from pico_ds.tasks.index.tokenizer_word_check import check_words, count_words
from tests.tokenizer_families import FAMILIES, SCRIPTS, UNSPACED, make_tokenizer


def documents(text: str) -> list[str]:
    """Texts with the words of `text` in random order."""
    chosen, words = random.Random(0), text.split(" ")
    return [" ".join(chosen.choices(words, k=60)) for _ in range(20)]


@pytest.mark.parametrize("family", ["pico_ds", "byte level", "unigram"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_words_from_token_ids_are_those_of_the_text(family: str, script: str, tmp_path: Path) -> None:
    texts = documents(SCRIPTS[script])
    tokenizer = make_tokenizer(family, texts, 450, tmp_path)
    counts = count_words(tokenizer, TokenClasses.of(tokenizer), texts)
    assert counts.words > 500
    assert counts.found >= 0.995 * counts.words, counts
    assert counts.false == 0, counts


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "English"])
def test_words_from_byte_tokens_are_those_of_the_text(script: str, tmp_path: Path) -> None:
    """A tokenizer that was trained on English splits other scripts into parts of characters."""
    texts = documents(SCRIPTS[script])
    for family in ("pico_ds", "byte fallback"):
        tokenizer = make_tokenizer(family, documents(SCRIPTS["English"]), 450, tmp_path / family)
        counts = count_words(tokenizer, TokenClasses.of(tokenizer), texts)
        assert counts.words > 500
        assert counts.found >= 0.995 * counts.words, counts
        assert counts.false == 0, counts


@pytest.mark.parametrize("family", FAMILIES)
def test_words_next_to_curly_quotes_are_found(family: str, tmp_path: Path) -> None:
    plain = "the people and their country’s “fair words”—however long—are “free” to all of them"
    texts = documents(plain)
    # only in this family can an entry span several words; train it without dashes, so that these become bytes
    learned = [text.replace("—", " ") for text in texts] if family == "byte fallback" else texts
    tokenizer = make_tokenizer(family, learned, 400, tmp_path)
    counts = count_words(tokenizer, TokenClasses.of(tokenizer), texts)
    assert counts.words > 500
    assert counts.found >= 0.995 * counts.words, counts
    assert counts.false == 0, counts


@pytest.mark.parametrize("script", UNSPACED)
def test_runs_of_scripts_without_spaces_are_counted(script: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("pico_ds", documents(UNSPACED[script]), 450, tmp_path)
    counts = count_words(tokenizer, TokenClasses.of(tokenizer), documents(UNSPACED[script]))
    assert counts.words == counts.false == 0
    assert counts.unspaced_letters > 1000
    assert counts.unspaced_run > 8


def tokens_of(texts: list[str], tokenizer: TextTokenizer) -> npt.NDArray[np.int64]:
    return np.array([token for ids in tokenizer.encode(texts) for token in [*ids, tokenizer.end_of_text_id]])


@pytest.mark.parametrize("script", UNSPACED)
def test_text_without_spaces_fails_with_a_solution(script: str, tmp_path: Path) -> None:
    letters = UNSPACED[script].replace(" ", "")
    unspaced = [letters[i:] for i in range(30)]
    spaced = ["\u200b".join(text[i : i + 3] for i in range(0, len(text), 3)) for text in unspaced]
    tokenizer = make_tokenizer("pico_ds", unspaced, 450, tmp_path)
    classes = TokenClasses.of(tokenizer)
    with pytest.raises(TaskError, match=r"without spaces between words.*U\+200B"):
        check_words(tokenizer, classes, tokens_of(unspaced, tokenizer))
    counts = check_words(tokenizer, classes, tokens_of(spaced, tokenizer))
    assert counts.unspaced_run <= 8


def test_a_few_letters_without_spaces_are_accepted(tmp_path: Path) -> None:
    texts = [f"{SCRIPTS['English']} {UNSPACED['Chinese'].replace(' ', '')[:40]}" for _ in range(9)]
    tokenizer = make_tokenizer("pico_ds", texts, 450, tmp_path)
    assert check_words(tokenizer, TokenClasses.of(tokenizer), tokens_of(texts, tokenizer)).words > 50


def test_a_tokenizer_whose_words_are_not_found_fails_with_its_type(tmp_path: Path) -> None:
    texts = documents(SCRIPTS["English"])
    tokenizer = make_tokenizer("unigram", texts, 450, tmp_path)
    classes = TokenClasses.of(tokenizer)
    tokens = tokens_of(texts, tokenizer)
    assert check_words(tokenizer, classes, tokens).found > 500
    # simulate a tokenizer in which no entry has letters, and one in which every entry is a whole word
    blind = replace(classes, _bits=np.zeros_like(classes._bits))
    with pytest.raises(TaskError, match=r"data.tokenizer: a Unigram tokenizer with .* entries: only 0.0% of the words"):
        check_words(tokenizer, blind, tokens)
    all_alone = classes._bits & ~np.uint32(0xFFFFFF00)
    with pytest.raises(TaskError, match="words"):
        check_words(tokenizer, replace(classes, _bits=all_alone), tokens)


@pytest.mark.parametrize("family", ["unigram", "word piece"])
def test_a_tokenizer_with_too_many_unknown_tokens_fails(family: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(family, documents(SCRIPTS["English"]), 450, tmp_path)
    with pytest.raises(TaskError, match=r"data.tokenizer: a (Unigram|WordPiece) .* are the unknown token"):
        check_words(tokenizer, TokenClasses.of(tokenizer), tokens_of(documents(SCRIPTS["Hindi"]), tokenizer))


def test_a_short_corpus_is_not_checked(tmp_path: Path) -> None:
    texts = documents(SCRIPTS["English"])
    tokenizer = make_tokenizer("pico_ds", texts, 450, tmp_path)
    classes = TokenClasses.of(tokenizer)
    assert check_words(tokenizer, classes, np.empty(0, dtype=np.int64)).words == 0
    blind = replace(classes, _bits=np.zeros_like(classes._bits))
    assert check_words(tokenizer, blind, tokens_of(["only a few words"], tokenizer)).found == 0
