"""Whole words of a token stream, and which of them may be classes of which split.

Words are found from token ids alone: pre-tokenizers of the GPT-2 family never join letters with anything else, so a
word is a run of letter tokens that a leading space, or a change of character class, sets off. The same code therefore
serves text and corpora that come tokenized.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pico_ds.config import SmlmtConfig
from pico_ds.data.keyed_random import keyed_uniform
from pico_ds.data.token_stream import TokenStream
from pico_ds.data.tokenizer import TextTokenizer

WordSplit = Literal["train", "validation", "test"]
WORD_SPLITS: tuple[WordSplit, ...] = ("train", "validation", "test")

#: characters that glue letters to what stands beside them; U+FFFD is a part of some character
_JOINERS = frozenset("'’-\ufffd")
#: a run of more tokens than this is no word
MAX_WORD_TOKENS = 12
#: multiplier of the polynomial hash that tells token runs apart (odd, 64 bits; from Steele and Vigna 2021)
HASH_MULTIPLIER = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True)
class TokenClasses:
    """What each entry of the vocabulary is made of; boolean arrays `[vocab_size]`."""

    starts_with_space: npt.NDArray[np.bool_]
    is_letters: npt.NDArray[np.bool_]
    joins_next: npt.NDArray[np.bool_]
    joins_previous: npt.NDArray[np.bool_]
    is_dot: npt.NDArray[np.bool_]
    ends_sentence: npt.NDArray[np.bool_]
    breaks_line: npt.NDArray[np.bool_]
    is_special: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "TokenClasses":
        """Classify every entry by its decoded text."""
        size = tokenizer.vocab_size
        texts = tokenizer.backend.decode_batch([[i] for i in range(size)], skip_special_tokens=False)
        is_special = np.zeros(size, dtype=np.bool_)
        is_special[[tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_of_text_id]] = True
        for special in np.flatnonzero(is_special):
            texts[special] = "\n"

        def classify(test: object) -> npt.NDArray[np.bool_]:
            return np.fromiter((bool(test(text)) for text in texts), dtype=np.bool_, count=size)  # type: ignore[operator]

        return cls(
            starts_with_space=classify(lambda text: text[:1].isspace()),
            # a lone part of a multi-byte character decodes to U+FFFD; it may be part of a letter
            is_letters=classify(lambda text: text.strip().replace("\ufffd", "a").isalpha()),
            joins_next=classify(lambda text: text[-1:].isalnum() or text[-1:] in _JOINERS),
            joins_previous=classify(lambda text: text[:1].isalnum() or text[:1] in _JOINERS),
            is_dot=classify(lambda text: text == "."),
            ends_sentence=classify(lambda text: text.rstrip("\"'”’)] ").endswith((".", "!", "?"))),
            breaks_line=classify(lambda text: "\n" in text),
            is_special=is_special,
        )


@dataclass(frozen=True)
class WordRuns:
    """Runs of letter tokens of a stream.

    Attributes:
        starts, ends: `[n_runs]` token positions, ends exclusive.
        hashes: `[n_runs]` hash of the run's token ids.
        whole: `[n_runs]` whether the run stands alone: "self-help", "don't", "U.S." and "20th" hold no whole word.
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    whole: npt.NDArray[np.bool_]


def find_word_runs(tokens: npt.NDArray[Any], classes: TokenClasses) -> WordRuns:
    """All runs of letter tokens, in order."""
    letters = classes.is_letters[tokens]
    spaced = classes.starts_with_space[tokens]
    begins = letters & (spaced | ~_before(letters))
    starts = np.flatnonzero(begins)
    # a run ends where the next begins or where letters stop
    stops = np.append(np.flatnonzero(begins | ~letters), len(tokens))
    ends = stops[np.searchsorted(stops, starts, side="right")]
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for offset in range(MAX_WORD_TOKENS):
        inside = starts + offset < ends
        # the leading space does not make another word: its token differs, so both forms are merged by text later
        step = hashes * HASH_MULTIPLIER + tokens[np.minimum(starts + offset, len(tokens) - 1)].astype(np.uint64) + 1
        hashes = np.where(inside, step, hashes)
    # glue is a hyphen, an apostrophe or a digit; or a dot between letters, as in "U.S."
    inner_dot = classes.is_dot[tokens] & _before(letters) & _after(letters & ~spaced)
    glued_before = ~spaced[starts] & _before(classes.joins_next[tokens] | inner_dot)[starts]
    glued_after = np.append((classes.joins_previous[tokens] & ~letters) | inner_dot, False)[ends]
    return WordRuns(starts, ends, hashes, whole=~glued_before & ~glued_after & (ends - starts <= MAX_WORD_TOKENS))


def _before(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The flag of the token before each token; False at the start."""
    return np.concatenate([[False], flags[:-1]])


def _after(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The flag of the token after each token; False at the end."""
    return np.concatenate([flags[1:], [False]])


@dataclass(frozen=True)
class Lexicon:
    """Words of a corpus, lower-cased, most frequent first.

    Attributes:
        words: text of each word id.
        train_counts: `[n_words]` occurrences in the training documents.
        run_hashes, run_words: sorted hashes of token runs, and the word id of each.
    """

    words: tuple[str, ...]
    train_counts: npt.NDArray[np.int64]
    run_hashes: npt.NDArray[np.uint64]
    run_words: npt.NDArray[np.int32]

    @classmethod
    def build(
        cls, train: TokenStream, validation: TokenStream, tokenizer: TextTokenizer, classes: TokenClasses
    ) -> "Lexicon":
        """Collect the words of both splits; counts are those of the training documents."""
        hashes: list[npt.NDArray[np.uint64]] = []
        spellings: list[list[int]] = []
        counts: list[npt.NDArray[np.int64]] = []
        for stream, counted in ((train, True), (validation, False)):
            tokens = stream.tokens
            runs = find_word_runs(tokens, classes)
            # runs that do not stand alone ("self-government") are known too, so that they are masked, but not counted
            unique, first, place = np.unique(runs.hashes, return_index=True, return_inverse=True)
            hashes.append(unique)
            spellings.extend(
                tokens[start:end].tolist() for start, end in zip(runs.starts[first], runs.ends[first], strict=True)
            )
            counts.append(np.bincount(place, weights=runs.whole & counted, minlength=len(unique)).astype(np.int64))
        texts = [text.strip().lower() for text in tokenizer.backend.decode_batch(spellings)]
        by_text: dict[str, int] = {}
        for text, count in zip(texts, np.concatenate(counts).tolist(), strict=True):
            if text.isalpha():
                by_text[text] = by_text.get(text, 0) + count
        ordered = sorted(by_text, key=lambda text: (-by_text[text], text))
        ids = {text: i for i, text in enumerate(ordered)}
        run_hashes, where = np.unique(np.concatenate(hashes), return_index=True)
        return cls(
            words=tuple(ordered),
            train_counts=np.array([by_text[text] for text in ordered], dtype=np.int64),
            run_hashes=run_hashes,
            run_words=np.array([ids.get(texts[i], -1) for i in where], dtype=np.int32),
        )

    def look_up(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Word id of each run hash, -1 where it is no word."""
        places = np.minimum(np.searchsorted(self.run_hashes, hashes), len(self.run_hashes) - 1)
        return np.where(self.run_hashes[places] == hashes, self.run_words[places], np.int32(-1))

    def class_words(self, split: WordSplit, config: SmlmtConfig, split_seed: int) -> npt.NDArray[np.int64]:
        """Ids of the words that may be classes of a split: in the frequency range, and assigned by a keyed hash."""
        in_range = (self.train_counts >= config.min_word_freq) & (self.train_counts <= config.max_word_freq)
        candidates = np.flatnonzero(in_range)
        mine = [split == word_split(self.words[i], config, split_seed) for i in candidates]
        return candidates[np.array(mine, dtype=np.bool_)]


def word_split(word: str, config: SmlmtConfig, split_seed: int) -> WordSplit:
    """The split a word belongs to; every word belongs to exactly one."""
    u = keyed_uniform("word split", split_seed, word)
    if u < config.validation_word_fraction:
        return "validation"
    if u < config.validation_word_fraction + config.test_word_fraction:
        return "test"
    return "train"
