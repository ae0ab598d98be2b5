"""Compares the words found from token ids with the words that Unicode segmentation finds in the decoded text.

Tasks are built from token ids. Without this check, tasks would be silently wrong for a tokenizer whose ids do not
reveal the words, and for text in a script without spaces, in which a clause looks like one word.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.errors import TaskError
from pico_ds.tasks.index.class_words import find_word_runs
from pico_ds.tasks.index.token_word_boundaries import TokenClasses
from pico_ds.tasks.index.words_in_text import LETTERS, MARK, UNSPACED_LETTER, WORD, words_of_text

#: number of parts of a corpus that are compared, and the length of each [tokens]
_N_PARTS, _PART_TOKENS = 32, 256
#: a smaller number of words is not enough to evaluate a tokenizer
_MIN_WORDS = 50
#: minimum share of the words of a text that is found, and maximum share of the found words that are not words
_MIN_FOUND, _MAX_FALSE = 0.99, 0.001
#: maximum share of unknown tokens
_MAX_UNKNOWN = 0.2
#: in scripts without spaces, a longer mean run of letters means that the runs are not words
_MAX_UNSPACED_RUN = 8.0


@dataclass(frozen=True)
class WordCounts:
    """Numbers of words in texts.

    Attributes:
        words: words that Unicode segmentation finds, except those next to an unknown token.
        found: how many of `words` are also found from token ids.
        usable: how many of `words` can be masked as a class, because their tokens contain nothing else.
        false: occurrences found from token ids that could be masked as a class but are not words.
        unspaced_letters: letters of scripts without spaces between words.
        unspaced_run: mean over these letters of the number of letters in their run.
        letters: letters of all scripts.
        missed, false_words: examples, the most frequent ones.
    """

    words: int
    found: int
    usable: int
    false: int
    unspaced_letters: int
    unspaced_run: float
    letters: int
    missed: tuple[str, ...]
    false_words: tuple[str, ...]


def check_words(tokenizer: TextTokenizer, classes: TokenClasses, tokens: npt.NDArray[Any]) -> WordCounts:
    """Check on parts of a corpus that its words can be found from token ids, and return the counts.

    Args:
        tokens: token ids of the corpus, in any shape.

    Raises:
        TaskError: too many tokens are unknown, words cannot be found from token ids, or the text has no spaces between
            words.
    """
    tokens = tokens.reshape(-1)
    starts = np.unique(np.linspace(0, max(0, len(tokens) - _PART_TOKENS), _N_PARTS).astype(np.int64))
    texts = [part for start in starts for part in _texts(tokens[start : start + _PART_TOKENS], tokenizer, classes)]
    unknown_share = float(np.mean(tokens == classes.surfaces.unknown_id)) if len(tokens) else 0.0
    if unknown_share > _MAX_UNKNOWN:
        raise TaskError(
            f"{_name(tokenizer)}: {unknown_share:.0%} of the tokens of the corpus are the unknown token; choose a "
            "tokenizer that was trained on similar text"
        )
    counts = count_words(tokenizer, classes, texts)
    if counts.words >= _MIN_WORDS and counts.found < _MIN_FOUND * counts.words:
        missed = ", ".join(map(repr, counts.missed))
        raise TaskError(
            f"{_name(tokenizer)}: only {counts.found / counts.words:.1%} of the words of the corpus can be found "
            f"from its tokens (missing: {missed}), but at least {_MIN_FOUND:.0%} are needed; choose another tokenizer"
        )
    if counts.false > _MAX_FALSE * max(counts.words, _MIN_WORDS):
        examples = ", ".join(map(repr, counts.false_words))
        raise TaskError(
            f"{_name(tokenizer)}: {counts.false:,} of the {counts.words + counts.false:,} words found from its tokens "
            f"are not words of the text ({examples}); choose another tokenizer"
        )
    if counts.unspaced_letters > counts.letters / 2 and counts.unspaced_run > _MAX_UNSPACED_RUN:
        raise TaskError(
            f"the corpus is written without spaces between words: its runs of letters are {counts.unspaced_run:.0f} "
            "letters long on average, so they are not words; put spaces or zero-width spaces (U+200B) between words "
            "with a segmenter for the language (such as jieba, MeCab or PyThaiNLP) before tokenization"
        )
    return counts


def _name(tokenizer: TextTokenizer) -> str:
    return f"data.tokenizer: a {type(tokenizer.backend.model).__name__} tokenizer with {tokenizer.vocab_size:,} entries"


def _texts(tokens: npt.NDArray[Any], tokenizer: TextTokenizer, classes: TokenClasses) -> list[str]:
    """Decode the texts between special tokens."""
    parts = groupby(tokens.tolist(), key=lambda token: bool(classes.is_special[token]))
    return [tokenizer.decode(part) for is_special, part in parts if not is_special]


def count_words(tokenizer: TextTokenizer, classes: TokenClasses, texts: Iterable[str]) -> WordCounts:
    """Count the words of texts that are found from token ids and by Unicode segmentation."""
    counts = np.zeros(4, dtype=np.int64)
    letters, unspaced_lengths = 0, Counter[int]()
    missed, false_words = Counter[str](), Counter[str]()
    for text in texts:
        expected, unknown = {*words_of_text(text)}, np.empty(0, dtype=np.int64)
        encoding = tokenizer.backend.encode(text, add_special_tokens=False)
        known: set[tuple[int, int]] = set()
        whole: set[tuple[int, int]] = set()
        if encoding.ids:
            tokens, offsets = np.array(encoding.ids), np.array(encoding.offsets)
            unknown = offsets[tokens == classes.surfaces.unknown_id]
            runs = find_word_runs(tokens, classes)
            for start, end, is_whole in zip(runs.starts, runs.ends, runs.whole, strict=True):
                first, stop = int(offsets[start, 0]), int(offsets[end - 1, 1])
                # a normalizer may drop marks or exclude them from the offsets
                while MARK.match(text, stop):
                    stop += 1
                inside = [*WORD.finditer(text, first, stop)]
                if len(inside) == 1 and not UNSPACED_LETTER.search(inside[0].group()):
                    known.add(inside[0].span())
                if is_whole and not UNSPACED_LETTER.search(text, first, stop):
                    whole.add(inside[0].span() if len(inside) == 1 else (first, stop))
        false = whole - expected
        expected -= {(start, end) for start, end in expected if _touches(unknown, start, end)}
        counts += [len(expected), len(expected & known), len(expected & whole), len(false)]
        missed.update(text[start:end] for start, end in expected - known)
        false_words.update(text[start:end] for start, end in false)
        for run in LETTERS.findall(text):
            letters += len(run)
            if unspaced := len(UNSPACED_LETTER.findall(run)):
                unspaced_lengths[unspaced] += 1
    unspaced_letters = sum(length * count for length, count in unspaced_lengths.items())
    squares = sum(length**2 * count for length, count in unspaced_lengths.items())
    words, found, usable, false_count = counts.tolist()
    return WordCounts(
        words=words,
        found=found,
        usable=usable,
        false=false_count,
        unspaced_letters=unspaced_letters,
        unspaced_run=squares / unspaced_letters if unspaced_letters else 0.0,
        letters=letters,
        missed=tuple(word for word, _ in missed.most_common(5)),
        false_words=tuple(word for word, _ in false_words.most_common(5)),
    )


def _touches(spans: np.ndarray, start: int, end: int) -> bool:
    return bool(((spans[:, 0] <= end) & (spans[:, 1] >= start)).any()) if len(spans) else False
