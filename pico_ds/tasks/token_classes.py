"""Where words stand among token ids.

Words are found from ids alone, so that the same code serves text and corpora that come tokenized. Every entry of the
vocabulary is classified once by its text (`TokenSurfaces`); `token_flags` then looks at each token with its neighbors.
The rules are those of `pico_ds.tasks.characters`, token by token instead of character by character.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pico_ds.data.token_surfaces import SPECIAL_SURFACE, TokenSurfaces
from pico_ds.data.tokenizer import TextTokenizer
from pico_ds.tasks.characters import JOINER, LETTERS, MARK, SPACED_LETTERS, UNSPACED_LETTER, WORDLIKE

Flags = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint16]

# what an entry is, by its text alone
_ONE_RUN = 1 << 0  # holds exactly one run of letters
_PURE = 1 << 1  # holds nothing else, but for spaces before it
_LETTER_FIRST = 1 << 2  # goes on with a word of the entry before it
_LETTER_LAST = 1 << 3
_SPACE_FIRST = 1 << 4
_WORDLIKE_FIRST = 1 << 5
_WORDLIKE_LAST = 1 << 6
_JOINER = 1 << 7  # one joiner and nothing else
_JOINER_FIRST = 1 << 8  # a joiner, then a word-like character
_JOINER_LAST = 1 << 9  # a word-like character, then a joiner
_MARK_FIRST = 1 << 10
_BEGINS_PIECE = 1 << 11
_DOT = 1 << 12  # a dot that may be inner or final (WordPiece)
_INITIAL = 1 << 13  # one letter that begins a piece
_PART_FIRST = 1 << 14  # its first byte goes on with a character
_SPECIAL = 1 << 15

# what a token is among its neighbors
IN_RUN, CONTINUES_RUN, PURE, GLUED_BEFORE, GLUED_AFTER, SPACED, SPECIAL, INSIDE_CHARACTER = (
    np.uint8(1 << bit) for bit in range(8)
)

#: parts of characters that follow each other in more tokens than this are no text
_MAX_PARTS = 8
#: a part of a character that makes none with its neighbors: it may stand for anything
_ANYTHING = _WORDLIKE_FIRST | _WORDLIKE_LAST
#: what joins WordPiece entries of which nobody knows whether a space stood between them
_PIECE_JOINERS = frozenset("'’-‐‑")


@dataclass(frozen=True)
class TokenClasses:
    """The entries of a vocabulary, classified.

    Attributes:
        surfaces: text of each entry.
        is_special: `[vocab_size]` masks, padding and ends of text, which bound contexts.
        ends_sentence, breaks_line: `[vocab_size]`
        starts_with_space: `[vocab_size]` or with a piece of WordPiece.
    """

    surfaces: TokenSurfaces
    is_special: Flags
    ends_sentence: Flags
    breaks_line: Flags
    starts_with_space: Flags
    _bits: Bits
    #: of tokens that hold parts of characters and stand together: bits of each, and whether they are one joiner
    _together: dict[tuple[int, ...], tuple[list[int], bool]] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "TokenClasses":
        """Classify every entry.

        Raises:
            DataError: a tokenizer of a kind whose entries cannot be read.
        """
        surfaces, size = TokenSurfaces.of(tokenizer.backend), tokenizer.vocab_size
        texts = [surface.decode(errors="replace") for surface in surfaces.surfaces]
        is_special = np.zeros(size, dtype=np.bool_)
        is_special[[tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_of_text_id]] = True
        bits = np.zeros(size, dtype=np.uint16)
        for number, (text, surface) in enumerate(zip(texts, surfaces.surfaces, strict=True)):
            begins_piece = surfaces.begins_piece[number]
            if is_special[number] or surface == SPECIAL_SURFACE:
                bits[number] = _BEGINS_PIECE if begins_piece else 0
            elif "\ufffd" in text and not _is_text(surface):
                bits[number] = _ANYTHING
            else:
                bits[number] = _classify(text, begins_piece)
            if surface[:1] and 0x80 <= surface[0] < 0xC0:
                bits[number] |= _PART_FIRST
        if surfaces.unknown_id is not None:
            begins = _BEGINS_PIECE if surfaces.begins_piece[surfaces.unknown_id] else 0
            bits[surfaces.unknown_id] = _ANYTHING | _JOINER_FIRST | _JOINER_LAST | begins
        bits[is_special] |= np.uint16(_SPECIAL | _SPACE_FIRST)
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
        """The text of token ids, as it stands in the vocabulary."""
        return b"".join(self.surfaces.surfaces[number] for number in ids).decode(errors="replace")

    @cached_property
    def has_pieces(self) -> bool:
        """Whether the tokenizer does not tell a space from nothing."""
        return any(self.surfaces.begins_piece)

    def token_flags(self, rows: npt.NDArray[Any], at_edges: bool) -> npt.NDArray[np.uint8]:
        """What each token is among its neighbors, in bits.

        IN_RUN: holds letters; CONTINUES_RUN: of the same run as those of the token before it; PURE: nothing but
        letters, and a space before them; GLUED_BEFORE, GLUED_AFTER: a run that begins (ends) here is a part of a longer
        segment, such as "don't", "U.S" or "20th"; SPACED: a space stands before it; SPECIAL: bounds contexts;
        INSIDE_CHARACTER: goes on with the character of the token before it.

        Args:
            rows: `[n_rows, n_tokens]` token ids.
            at_edges: what stands beyond the ends of a row is not known, and may be glued to it.

        Returns:
            `[n_rows, n_tokens]`
        """
        bits = self._bits[rows]
        joined = _NO_JOINERS
        parts = (bits & _PART_FIRST) != 0
        if parts.any():
            joined = self._put_characters_together(rows, bits, parts)
        before, after = _shifted(bits, 1), _shifted(bits, -1)

        in_run = (bits & _ONE_RUN) != 0
        continues = in_run & _has(before, _ONE_RUN | _LETTER_LAST) & _has(bits, _LETTER_FIRST)
        spaced = (bits & _SPACE_FIRST) != 0
        wordlike_first = _has(bits, _WORDLIKE_FIRST) & ~spaced
        touches = ((before & _WORDLIKE_LAST) != 0) & ((bits & _BEGINS_PIECE) == 0)
        glued = wordlike_first & (touches | ((before & _JOINER_LAST) != 0)) & ~continues
        glued |= ((bits & _JOINER_FIRST) != 0) & ((before & _WORDLIKE_LAST) != 0)
        # a joiner between two tokens glues the first to it, and the second
        joins = _has(bits, _JOINER) & ((before & _WORDLIKE_LAST) != 0) & _next(wordlike_first)
        glued_after = _next(glued) | _next(joins)
        glued |= _previous(joins)
        row, start, end = joined[(joined[:, 1] > 0) & (joined[:, 2] < bits.shape[1])].T
        between = ((before[row, start] & _WORDLIKE_LAST) != 0) & wordlike_first[row, end]
        glued_after[row[between], start[between] - 1] = True
        glued[row[between], end[between]] = True
        if self.has_pieces:
            initial = (bits & _INITIAL) != 0
            glued |= initial & ((before & _DOT) != 0)
            glued_after |= initial & ((after & _DOT) != 0)
        glued |= ((bits & _MARK_FIRST) != 0) & ~continues
        if at_edges:
            glued[:, 0] |= ~spaced[:, 0]
            glued_after[:, -1] = True

        flags = np.zeros(bits.shape, dtype=np.uint8)
        for bit, holds in (
            (IN_RUN, in_run),
            (CONTINUES_RUN, continues),
            (PURE, (bits & _PURE) != 0),
            (GLUED_BEFORE, glued),
            (GLUED_AFTER, glued_after),
            (SPACED, spaced),
            (SPECIAL, (bits & _SPECIAL) != 0),
            (INSIDE_CHARACTER, parts),
        ):
            flags |= np.where(holds, bit, np.uint8(0))
        return flags

    def _put_characters_together(self, rows: npt.NDArray[Any], bits: Bits, parts: Flags) -> npt.NDArray[np.int64]:
        """Classify tokens that share a character by the characters that they make together.

        Args:
            bits: of each token; changed in place.
            parts: whether a token begins with a part of the character before it.

        Returns:
            (row, first token, token behind the last) of those that are one joiner, such as ’.
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
            found = [self._of_parts(tuple(group)) for group in unique.tolist()]
            table = np.array([group for group, _ in found], dtype=np.uint16)
            bits[where_rows[chosen, None], places] = table[inverse.ravel()]
            is_joiner = np.array([joins for _, joins in found])[inverse.ravel()]
            these = chosen[is_joiner]
            joined.append(np.stack([where_rows[these], firsts[these], firsts[these] + length], axis=1))
        return np.concatenate(joined)

    def _of_parts(self, ids: tuple[int, ...]) -> tuple[list[int], bool]:
        if ids not in self._together:
            self._together[ids] = self._read_parts([self.surfaces.surfaces[number] for number in ids])
        return self._together[ids]

    @staticmethod
    def _read_parts(parts: list[bytes]) -> tuple[list[int], bool]:
        whole = b"".join(parts)
        if not _is_text(whole):
            return [_ANYTHING] * len(parts), False
        text = whole.decode()
        if JOINER.fullmatch(text):
            return [0] * len(parts), True
        ends = np.cumsum([len(character.encode()) for character in text])
        found, start = [], 0
        for part in parts:
            # all characters that have a byte in this token
            first, last = np.searchsorted(ends, [start, start + len(part) - 1], side="right")
            found.append(_classify(text[first : last + 1], begins_piece=False))
            start += len(part)
        return found, False


_NO_JOINERS: npt.NDArray[np.int64] = np.empty((0, 3), dtype=np.int64)


def _classify(text: str, begins_piece: bool) -> int:
    """Bits of a token whose characters are whole."""
    bits = 0
    runs = LETTERS.findall(text)
    if begins_piece and UNSPACED_LETTER.match(text):
        # tokenizers of this kind put spaces around Chinese characters themselves
        begins_piece = False
    holds = {
        _ONE_RUN: len(runs) == 1,
        _PURE: SPACED_LETTERS.fullmatch(text),
        _LETTER_FIRST: LETTERS.match(text) and not begins_piece,
        _LETTER_LAST: LETTERS.match(text[-1:]),
        _SPACE_FIRST: text[:1].isspace(),
        _WORDLIKE_FIRST: WORDLIKE.match(text),
        _WORDLIKE_LAST: WORDLIKE.match(text[-1:]),
        _JOINER: JOINER.fullmatch(text) and (not begins_piece or text in _PIECE_JOINERS),
        _JOINER_FIRST: JOINER.match(text) and WORDLIKE.match(text[1:]),
        _JOINER_LAST: JOINER.match(text[-1:]) and WORDLIKE.match(text[-2:-1]),
        _MARK_FIRST: MARK.match(text),
        _BEGINS_PIECE: begins_piece,
        _DOT: begins_piece and text == ".",
        _INITIAL: begins_piece and len(text) == 1 and runs,
    }
    for bit, is_so in holds.items():
        if is_so:
            bits |= bit
    return bits


def _is_text(surface: bytes) -> bool:
    try:
        surface.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has(bits: Bits, all_of: int) -> Flags:
    return (bits & all_of) == all_of


def _shifted(bits: Bits, by: int) -> Bits:
    """The bits of the token `by` places before each token; none beyond the ends of a row."""
    shifted = np.zeros_like(bits)
    if by > 0:
        shifted[:, by:] = bits[:, :-by]
    else:
        shifted[:, :by] = bits[:, -by:]
    return shifted


def _next(flags: Flags) -> Flags:
    """The flag of the token after each token; False at the end of a row."""
    shifted = np.zeros_like(flags)
    shifted[:, :-1] = flags[:, 1:]
    return shifted


def _previous(flags: Flags) -> Flags:
    """The flag of the token before each token; False at the start of a row."""
    shifted = np.zeros_like(flags)
    shifted[:, 1:] = flags[:, :-1]
    return shifted
