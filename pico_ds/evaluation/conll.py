"""Sentences with a tag for every word, from files in CoNLL format."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pico_ds.errors import DataError

_TAG = re.compile(r"O|[BI]-\S+")
logger = logging.getLogger("pico_ds")


@dataclass(frozen=True)
class TaggedSentence:
    """Words, and a tag of each in the IOB2 scheme (`O`, `B-PER`, `I-PER`)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    columns: list[str]


def read_conll(path: Path) -> list[TaggedSentence]:
    """Read one word a line and an empty line between sentences.

    Columns are parted by tabs or spaces: the word first and the tag last. Where columns are parted by tabs and the
    first counts 1, 2, 3, ... in every sentence, as in Universal NER, they are number, word, tag. Lines that begin with
    # before the first word of a sentence are comments, unless they have the columns of a word. An entity that begins
    with I-, as in the IOB1 scheme, is read as one that begins with B-, with a warning.

    Raises:
        DataError: a file that cannot be read, or a line without a tag, with its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from error
    blocks = [*_blocks(text)]
    numbered = all(_counts(block) for block in blocks)
    place = (1, 2) if numbered else (0, -1)
    sentences: list[TaggedSentence] = []
    late: list[int] = []
    for block in blocks:
        pairs = [_word_and_tag(path, line, *place) for line in block]
        tags = [tag for _, tag in pairs]
        for i, tag in enumerate(tags):
            if tag.startswith("I-") and (i == 0 or tags[i - 1][2:] != tag[2:]):
                late.append(block[i].number)
                tags[i] = f"B-{tag[2:]}"
        sentences.append(TaggedSentence(tuple(word for word, _ in pairs), tuple(tags)))
    if not sentences:
        raise DataError(f"{path}: holds no sentence; one word and its tag a line are expected")
    if late:
        logger.warning(
            "warning: %s: %d entities begin with I- (the first at line %d); they are read as if they began with B-",
            path,
            len(late),
            late[0],
        )
    return sentences


def _blocks(text: str) -> Iterator[list[_Line]]:
    """The lines of each sentence, without comments."""
    # at line feeds alone: a word may hold a character that other tools break lines at
    lines = [_Line(number, line, _columns(line)) for number, line in enumerate(text.split("\n"), start=1)]
    widths = {len(line.columns) for line in lines if line.columns and not line.text.startswith("#")}
    block: list[_Line] = []
    for line in lines:
        is_word = len(line.columns) in widths and _TAG.fullmatch(line.columns[-1]) is not None
        if not line.columns or line.text.startswith("-DOCSTART-"):
            if block:
                yield block
            block = []
        elif block or is_word or not line.text.startswith("#"):
            block.append(line)
    if block:
        yield block


def _columns(line: str) -> list[str]:
    if not line.strip():
        return []
    if "\t" in line:
        return [column.strip() for column in line.split("\t")]
    return [column for column in line.split(" ") if column]


def _counts(block: Sequence[_Line]) -> bool:
    """Whether a sentence has number, word and tag."""
    return all(
        "\t" in line.text and len(line.columns) > 2 and line.columns[0] == str(number)
        for number, line in enumerate(block, start=1)
    )


def _word_and_tag(path: Path, line: _Line, word_at: int, tag_at: int) -> tuple[str, str]:
    if len(line.columns) < 2 or not line.columns[word_at] or not _TAG.fullmatch(line.columns[tag_at]):
        raise DataError(
            f"{path}:{line.number}: got {line.text!r:.80}; expected a word and, in the last column, a tag: O, B-<kind> "
            "or I-<kind> (or, parted by tabs and counted in every sentence, number, word, tag)"
        )
    return line.columns[word_at], line.columns[tag_at]
