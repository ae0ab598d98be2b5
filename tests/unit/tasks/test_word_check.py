"""Words from token ids against Unicode's segmentation of the text, for every family of tokenizers and many scripts."""

import random
from pathlib import Path

import pytest

from pico_ds.tasks.token_classes import TokenClasses
from pico_ds.tasks.word_check import count_words
from tests.tokenizer_families import FAMILIES, SCRIPTS, UNSPACED, make_tokenizer


def documents(text: str) -> list[str]:
    """Texts of the same words in other orders."""
    chosen, words = random.Random(0), text.split(" ")
    return [" ".join(chosen.choices(words, k=60)) for _ in range(20)]


@pytest.mark.parametrize("family", ["own", "byte level", "unigram"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_words_from_token_ids_are_the_words_of_the_text(family: str, script: str, tmp_path: Path) -> None:
    texts = documents(SCRIPTS[script])
    tokenizer = make_tokenizer(family, texts, 450, tmp_path)
    counts = count_words(tokenizer, TokenClasses.of(tokenizer), texts)
    assert counts.words > 500
    assert counts.found >= 0.995 * counts.words, counts
    assert counts.false == 0, counts


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "English"])
def test_words_of_bytes_are_the_words_of_the_text(script: str, tmp_path: Path) -> None:
    """Trained on English, a tokenizer writes other scripts in parts of characters."""
    texts = documents(SCRIPTS[script])
    for family in ("own", "byte fallback"):
        tokenizer = make_tokenizer(family, documents(SCRIPTS["English"]), 450, tmp_path / family)
        counts = count_words(tokenizer, TokenClasses.of(tokenizer), texts)
        assert counts.words > 500
        assert counts.found >= 0.995 * counts.words, counts
        assert counts.false == 0, counts


@pytest.mark.parametrize("family", FAMILIES)
def test_words_beside_curly_quotes_are_found(family: str, tmp_path: Path) -> None:
    plain = "the people and their country’s “fair words”—however long—are “free” to all of them"
    texts = documents(plain)
    # this family alone lets entries hold several words; it learns them without what stands between, which become bytes
    learned = [text.replace("—", " ") for text in texts] if family == "byte fallback" else texts
    tokenizer = make_tokenizer(family, learned, 400, tmp_path)
    counts = count_words(tokenizer, TokenClasses.of(tokenizer), texts)
    assert counts.words > 500
    assert counts.found >= 0.995 * counts.words, counts
    assert counts.false == 0, counts


@pytest.mark.parametrize("script", UNSPACED)
def test_runs_of_scripts_without_spaces_are_measured(script: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("own", documents(UNSPACED[script]), 450, tmp_path)
    counts = count_words(tokenizer, TokenClasses.of(tokenizer), documents(UNSPACED[script]))
    assert counts.words == counts.false == 0
    assert counts.unspaced_letters > 1000
    assert counts.unspaced_run > 8
