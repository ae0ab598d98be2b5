import numpy as np

from pico_ds.config import SmlmtConfig
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.tasks.index.class_words import ClassWords, find_word_runs, word_split
from pico_ds.tasks.index.token_word_boundaries import TokenClasses
from tests.unit.tasks.conftest import stream_of

TEXT = 'Apple apple, APPLE! self-apple "apple" apple7 7apple snapple apple\napple don\'t U.S. end.'


def test_runs_of_letters_are_found_from_token_ids(tokenizer: TextTokenizer) -> None:
    stream = stream_of([TEXT], tokenizer)
    tokens = stream.tokens.astype(np.int64)
    runs = find_word_runs(tokens, TokenClasses.of(tokenizer))
    texts = [
        tokenizer.decode(tokens[start:end].tolist()).strip() for start, end in zip(runs.starts, runs.ends, strict=True)
    ]
    assert texts == [
        "Apple", "apple", "APPLE", "self", "apple", "apple", "apple", "apple", "snapple", "apple", "apple", "don", "t",
        "U", "S", "end",
    ]  # fmt: skip
    whole = [text for text, is_whole in zip(texts, runs.whole, strict=True) if is_whole]
    # a run next to a hyphen, a digit, an apostrophe or an inner dot is not a whole word
    assert whole == ["Apple", "apple", "APPLE", "apple", "snapple", "apple", "apple", "end"]


def test_words_are_merged_by_text_and_counted_in_training_documents_only(tokenizer: TextTokenizer) -> None:
    classes = TokenClasses.of(tokenizer)
    train, validation = stream_of([TEXT], tokenizer), stream_of(["apple castle castle"], tokenizer)
    lexicon = ClassWords.build(train, validation, classes)
    counts = dict(zip(lexicon.words, lexicon.train_counts.tolist(), strict=True))
    assert counts["apple"] == 6
    assert counts["snapple"] == 1
    assert counts["castle"] == 0
    runs = find_word_runs(train.tokens.astype(np.int64), classes)
    words = lexicon.look_up(runs.hashes)
    # a run that is not a whole word is known too, so that it is masked
    assert [lexicon.words[word] for word in words if word >= 0].count("apple") == 9


def test_words_are_split_in_the_configured_fractions() -> None:
    config = SmlmtConfig(validation_word_fraction=0.2, test_word_fraction=0.1)
    splits = [word_split(f"word{i}", config, 0) for i in range(3000)]
    assert abs(splits.count("validation") / 3000 - 0.2) < 0.03
    assert abs(splits.count("test") / 3000 - 0.1) < 0.03
    assert splits == [word_split(f"word{i}", config, 0) for i in range(3000)]
    assert splits != [word_split(f"word{i}", config, 1) for i in range(3000)]
