"""Finds words in text by the default word segmentation of Unicode (UAX #29).

A word is a segment that consists of letters and the marks on them. A segment that also contains a digit, an apostrophe,
an inner dot or an underscore ("don't", "U.S", "20th") is not a word, nor is a part of a hyphenated compound.
"""

import unicodedata
from collections.abc import Iterator

import regex

#: marks belong to the letter before them, as do joiners of Indic scripts and Arabic, and soft hyphens
_LETTERS = r"[\p{L}\p{M}\u00ad\u200c\u200d]"
#: characters that UAX #29 never separates from an adjacent letter
_WORDLIKE = (
    r"[\p{L}\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Katakana}\p{WB=Numeric}\p{WB=ExtendNumLet}\p{M}\u00ad\u200c\u200d]"
)
_HYPHENS = r"[-\u2010\u2011]"
_UNSPACED = r"[\p{L}--[\p{WB=ALetter}\p{WB=Hebrew_Letter}]]"

#: a letter and the letters and marks after it
WORD = regex.compile(rf"\p{{L}}{_LETTERS}*")
#: a run of letters and marks; it may begin with a mark, whose letter is in another token
LETTERS = regex.compile(rf"{_LETTERS}+")
#: only letters, after spaces that are not line breaks
SPACED_LETTERS = regex.compile(rf"[^\S\n\r]*{_LETTERS}+")
WORDLIKE = regex.compile(_WORDLIKE)
MARK = regex.compile(r"[\p{M}\u00ad\u200c\u200d]")
#: joins the characters on both sides into one segment; hyphens count as joiners too
JOINER = regex.compile(rf"[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}\p{{WB=Double_Quote}}]|{_HYPHENS}")
#: a letter of a script that is written without spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese
UNSPACED_LETTER = regex.compile(_UNSPACED, regex.V1)
_WORD_IN_TEXT = regex.compile(
    rf"(?<!{_WORDLIKE}{_HYPHENS})\b\p{{L}}{_LETTERS}*\b(?!{_HYPHENS}{_WORDLIKE})", regex.V1 | regex.WORD
)


def words_of_text(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of every word, except words with letters of scripts without spaces."""
    for found in _WORD_IN_TEXT.finditer(text):
        if not UNSPACED_LETTER.search(found.group()):
            yield found.span()


def word_name(text: str) -> str | None:
    """Return the one word in a text, in lower case and composed form (NFC); None if there is not exactly one.

    A word that mixes letters of scripts with and without spaces does not count.
    """
    words = WORD.findall(text)
    if len(words) != 1:
        return None
    name = unicodedata.normalize("NFC", words[0].replace("\u00ad", "").lower())
    unspaced = len(UNSPACED_LETTER.findall(name))
    letters = sum(character.isalpha() for character in name)
    return name if unspaced in (0, letters) else None
