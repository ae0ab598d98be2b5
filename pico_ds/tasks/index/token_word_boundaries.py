"""Finds words in token ids.

Only ids are needed, so the same code works on text and on pre-tokenized corpora. Every entry of the vocabulary is
classified once by its text (`TokenSurfaces`). `token_flags` then compares each token with its neighbors. The rules are
those of `pico_ds.tasks.index.words_in_text`, applied to tokens instead of characters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.data.text.token_strings import SPECIAL_SURFACE, TokenSurfaces
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.tasks.index.words_in_text import JOINER, LETTERS, MARK, SPACED_LETTERS, UNSPACED_LETTER, WORDLIKE

Flags = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint32]

# flags of a token in its sequence; `TokenClasses.token_flags` explains them
IN_RUN, CONTINUES_RUN, PURE, GLUED_BEFORE, GLUED_AFTER, SPACED, SPECIAL, INSIDE_CHARACTER = (
    np.uint8(1 << bit) for bit in range(8)
)

# The class of a vocabulary entry, which depends only on its text, has 8 bits for the entry, 8 for its start and 8 for
# its end. The bits for the entry are IN_RUN, PURE, SPACED, SPECIAL, INSIDE_CHARACTER and:
_MARK_FIRST = CONTINUES_RUN
# Two consecutive tokens are in contact if the end bits of the first and the start bits of the second share a bit. The
# comment of each bit describes the end of the first token | the start of the second.
_RUN_ON = 1 << 0  # letters | letters, which continue the run
_WORDLIKE = 1 << 1  # word-like character | word-like character
_AFTER_JOINER = 1 << 2  # word-like character and joiner | word-like character
_BEFORE_JOINER = 1 << 3  # word-like character | joiner and word-like character
_INTO_JOINER = 1 << 4  # word-like character | token that is a joiner
_OUT_OF_JOINER = 1 << 5  # token that is a joiner | word-like character
_DOT_INITIAL = 1 << 6  # WordPiece: dot | single letter
_INITIAL_DOT = 1 << 7  # WordPiece: single letter | dot
#: contact by one of these bits joins both tokens into one segment
_ONE_SEGMENT = _WORDLIKE | _AFTER_JOINER | _BEFORE_JOINER | _DOT_INITIAL | _INITIAL_DOT
_START, _END = 8, 16  # number of the first bit for the start, and for the end

#: a longer sequence of tokens with partial characters is not text
_MAX_PARTS = 8
#: an unknown character, or bytes that do not form a character with their neighbors: either may be a letter or a joiner
_ANYTHING = ((_WORDLIKE | _BEFORE_JOINER | _OUT_OF_JOINER) << _START) | (
    (_WORDLIKE | _AFTER_JOINER | _INTO_JOINER) << _END
)
#: joiners of WordPiece entries, whose ids do not show whether there was a space between them
_PIECE_JOINERS = frozenset("'’-‐‑")


@dataclass(frozen=True)
class TokenClasses:
    """The entries of a vocabulary, classified.

    Attributes:
        surfaces: text of each entry.
        is_special: `[vocab_size]` mask, padding and end-of-text tokens, which no context crosses.
        ends_sentence, breaks_line: `[vocab_size]`
        starts_with_space: `[vocab_size]`; entries that begin a WordPiece word count too.
    """

    surfaces: TokenSurfaces
    is_special: Flags
    ends_sentence: Flags
    breaks_line: Flags
    starts_with_space: Flags
    _bits: Bits
    #: cache for groups of tokens with partial characters: the bits of each token, and whether the group is a joiner
    _group_cache: dict[tuple[int, ...], tuple[list[int], bool]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "TokenClasses":
        """Classify every entry.

        Raises:
            DataError: the entries of this type of tokenizer cannot be decoded.
        """
        surfaces, size = TokenSurfaces.of(tokenizer.backend), tokenizer.vocab_size
        texts = [surface.decode(errors="replace") for surface in surfaces.surfaces]
        is_special = np.zeros(size, dtype=np.bool_)
        is_special[[tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_of_text_id]] = True
        bits = np.zeros(size, dtype=np.uint32)
        for number, (text, surface) in enumerate(zip(texts, surfaces.surfaces, strict=True)):
            if is_special[number]:
                bits[number] = SPECIAL | SPACED
            elif number == surfaces.unknown_id:
                bits[number] = _ANYTHING
            elif surface != SPECIAL_SURFACE:
                bits[number] = _classify(text, surfaces.begins_piece[number]) if _is_text(surface) else _ANYTHING
            if surface[:1] and 0x80 <= surface[0] < 0xC0:
                bits[number] |= INSIDE_CHARACTER
        spaced = np.array([text[:1].isspace() for text in texts]) | np.array(surfaces.begins_piece)
        return cls(
            surfaces,
            is_special,
            ends_sentence=np.array([text.rstrip("\"'”’)] ").endswith((".", "!", "?")) for text in texts]),
            breaks_line=np.array(["\n" in text for text in texts]) | is_special,
            starts_with_space=spaced | is_special,
            _bits=bits,
        )

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids, as spelled in the vocabulary."""
        return b"".join(self.surfaces.surfaces[number] for number in ids).decode(errors="replace")

    def token_flags(self, rows: npt.NDArray[Any], at_edges: bool) -> npt.NDArray[np.uint8]:
        """Return flags of each token, as a bit mask.

        IN_RUN: contains letters.
        CONTINUES_RUN: its letters continue the run of letters of the token before it.
        PURE: contains only letters, optionally after a space.
        GLUED_BEFORE, GLUED_AFTER: a run that begins (ends) here is part of a longer segment, such as "don't", "U.S" or
            "20th".
        SPACED: begins with a space.
        SPECIAL: no context crosses it.
        INSIDE_CHARACTER: continues the character of the token before it.

        Args:
            rows: `[n_rows, n_tokens]` token ids.
            at_edges: whether unknown tokens precede and follow each row, so that its edges may be glued to them.

        Returns:
            `[n_rows, n_tokens]`
        """
        bits = self._bits[rows]
        parts = (bits & INSIDE_CHARACTER) != 0
        joiners = self._classify_shared_characters(rows, bits, parts) if parts.any() else None
        # contact between each token and the one before it; the first token has none
        contact = np.zeros(bits.shape, dtype=np.uint8)
        contact[:, 1:] = (bits[:, :-1] >> _END) & (bits[:, 1:] >> _START)
        continues = (contact & _RUN_ON) != 0
        glued = ((contact & _ONE_SEGMENT) != 0) & ~continues
        # a joiner between two word-like characters joins all three into one segment
        into, out = (contact & _INTO_JOINER) != 0, (contact & _OUT_OF_JOINER) != 0
        joined = into[:, :-1] & out[:, 1:]
        glued[:, :-1] |= joined
        glued[:, 1:] |= joined
        if joiners is not None:
            row, start, end = joiners[joiners[:, 2] < bits.shape[1]].T
            between = into[row, start] & out[row, end]
            glued[row[between], start[between]] = glued[row[between], end[between]] = True

        flags = bits.astype(np.uint8)
        starts_with_mark = (flags & _MARK_FIRST) != 0
        flags &= ~_MARK_FIRST
        flags |= continues * CONTINUES_RUN
        flags[:, :-1] |= glued[:, 1:] * GLUED_AFTER
        glued |= starts_with_mark & ~continues
        if at_edges:
            glued[:, 0] |= (flags[:, 0] & SPACED) == 0
            flags[:, -1] |= GLUED_AFTER
        flags |= glued * GLUED_BEFORE
        return flags

    def _classify_shared_characters(self, rows: npt.NDArray[Any], bits: Bits, parts: Flags) -> npt.NDArray[np.int64]:
        """Classify tokens that share a character by the characters that they form together.

        Args:
            bits: class bits of each token, which are changed in place.
            parts: whether each token begins in the middle of a character.

        Returns:
            (row, first token, end) of each group of tokens that is one joiner, such as ’; the end is exclusive.
        """
        joined: list[npt.NDArray[np.int64]] = []
        begins = ~parts & _next(parts)
        begins[:, 0] |= parts[:, 0]
        where_rows, firsts = np.nonzero(begins)
        lengths = np.ones(len(firsts), dtype=np.int64)
        for length in range(1, _MAX_PARTS):
            at = firsts + length
            longer = (lengths == length) & (at < bits.shape[1])
            longer[longer] = parts[where_rows[longer], at[longer]]
            lengths += longer
        for length in np.unique(lengths):
            chosen = np.flatnonzero(lengths == length)
            places = firsts[chosen, None] + np.arange(length)
            ids = rows[where_rows[chosen, None], places].astype(np.int64)
            unique, inverse = np.unique(ids, axis=0, return_inverse=True)
            found = [self._classify_group(tuple(group)) for group in unique.tolist()]
            table = np.array([group for group, _ in found], dtype=np.uint32)
            bits[where_rows[chosen, None], places] = table[inverse.ravel()]
            bits[where_rows[chosen, None], places[:, 1:]] |= np.uint32(INSIDE_CHARACTER)
            is_joiner = np.array([joins for _, joins in found])[inverse.ravel()]
            groups = chosen[is_joiner]
            joined.append(np.stack([where_rows[groups], firsts[groups], firsts[groups] + length], axis=1))
        return np.concatenate(joined)

    def _classify_group(self, ids: tuple[int, ...]) -> tuple[list[int], bool]:
        if ids not in self._group_cache:
            self._group_cache[ids] = self._classify_uncached([self.surfaces.surfaces[number] for number in ids])
        return self._group_cache[ids]

    @staticmethod
    def _classify_uncached(parts: list[bytes]) -> tuple[list[int], bool]:
        whole = b"".join(parts)
        if not _is_text(whole):
            return [_ANYTHING] * len(parts), False
        text = whole.decode()
        if JOINER.fullmatch(text):
            first, last = _INTO_JOINER << _START, _OUT_OF_JOINER << _END
            return [first, *[0] * (len(parts) - 2), last], True
        ends = np.cumsum([len(character.encode()) for character in text])
        found, start = [], 0
        for part in parts:
            # the characters that have a byte in this token
            first, last = np.searchsorted(ends, [start, start + len(part) - 1], side="right")
            found.append(_classify(text[first : last + 1], begins_piece=False))
            start += len(part)
        return found, False


def _classify(text: str, begins_piece: bool) -> int:
    """Return the class bits of a token that contains only complete characters."""
    runs = LETTERS.findall(text)
    if begins_piece and UNSPACED_LETTER.match(text):
        # WordPiece tokenizers put spaces around Chinese characters, so these spaces may not be in the text
        begins_piece = False
    one_run = len(runs) == 1
    wordlike_first, wordlike_last = WORDLIKE.match(text), WORDLIKE.match(text[-1:])
    is_joiner = JOINER.fullmatch(text) and (not begins_piece or text in _PIECE_JOINERS)
    is_dot, is_initial = begins_piece and text == ".", begins_piece and len(text) == 1 and one_run
    entry = {
        int(IN_RUN): one_run,
        int(PURE): SPACED_LETTERS.fullmatch(text),
        int(SPACED): text[:1].isspace(),
        int(_MARK_FIRST): MARK.match(text),
    }
    start = {
        _RUN_ON: one_run and LETTERS.match(text) and not begins_piece,
        _WORDLIKE: wordlike_first and not begins_piece,
        _AFTER_JOINER: wordlike_first,
        _BEFORE_JOINER: JOINER.match(text) and WORDLIKE.match(text[1:]),
        _INTO_JOINER: is_joiner,
        _OUT_OF_JOINER: wordlike_first,
        _DOT_INITIAL: is_initial,
        _INITIAL_DOT: is_dot,
    }
    end = {
        _RUN_ON: one_run and LETTERS.match(text[-1:]),
        _WORDLIKE: wordlike_last,
        _AFTER_JOINER: JOINER.match(text[-1:]) and WORDLIKE.match(text[-2:-1]),
        _BEFORE_JOINER: wordlike_last,
        _INTO_JOINER: wordlike_last,
        _OUT_OF_JOINER: is_joiner,
        _DOT_INITIAL: is_dot,
        _INITIAL_DOT: is_initial,
    }
    return _packed(entry) | _packed(start) << _START | _packed(end) << _END


def _packed(conditions: Mapping[int, object]) -> int:
    return sum(bit for bit, is_true in conditions.items() if is_true)


def _is_text(surface: bytes) -> bool:
    try:
        surface.decode()
    except UnicodeDecodeError:
        return False
    return True


def _next(flags: Flags) -> Flags:
    """Return the flag of the next token for each token; False at the end of a row."""
    shifted = np.zeros_like(flags)
    shifted[:, :-1] = flags[:, 1:]
    return shifted
