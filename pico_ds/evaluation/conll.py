"""Sentences with a tag for every word, from files in CoNLL format."""

import re
from dataclasses import dataclass
from pathlib import Path

from pico_ds.data.errors import DataError

_TAG = re.compile(r"O|[BI]-\S+")


@dataclass(frozen=True)
class TaggedSentence:
    """Words, and a tag of each in the IOB2 scheme (`O`, `B-PER`, `I-PER`)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_conll(path: Path) -> list[TaggedSentence]:
    """Read one word a line and an empty line between sentences; lines that begin with # are comments.

    Columns are parted by tabs or spaces: the word first and the tag last; or, as in Universal NER, number, word, tag.

    Raises:
        DataError: a file that cannot be read, or a line without a tag, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from error
    sentences: list[TaggedSentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.startswith("#") or line.startswith("-DOCSTART-"):
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        if not columns or not columns[0].strip():
            if words:
                sentences.append(TaggedSentence(tuple(words), tuple(tags)))
            words, tags = [], []
            continue
        numbered = len(columns) > 2 and columns[0].isdigit()
        word, tag = (columns[1], columns[2]) if numbered else (columns[0], columns[-1])
        if len(columns) < 2 or not _TAG.fullmatch(tag):
            raise DataError(
                f"{path}:{number}: got {line!r:.80}; expected a word and, in the last column, a tag: O, B-<kind> or "
                "I-<kind> (or number, word, tag)"
            )
        words.append(word)
        tags.append(tag)
    if not sentences:
        raise DataError(f"{path}: holds no sentence; one word and its tag a line are expected")
    return sentences
