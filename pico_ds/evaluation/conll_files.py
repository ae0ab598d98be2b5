"""Reads sentences with one tag per word from files in CoNLL format."""

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
    """The words of a sentence and their tags in the IOB2 scheme (`O`, `B-PER`, `I-PER`)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    columns: list[str]


def read_conll(path: Path) -> list[TaggedSentence]:
    """Read a file with one word per line and an empty line between sentences.

    Columns are separated by tabs or spaces. The first is the word, the last is the tag. If tabs separate the columns
    and the first column counts 1, 2, 3, ... in every sentence, as in Universal NER, the columns are number, word, tag.
    Lines that begin with # before the first word of a sentence are comments, unless they have the columns of a word.
    An entity that begins with I-, as in the IOB1 scheme, is read as if it began with B-, and a warning is logged.

    Raises:
        DataError: the file cannot be read or has no sentence, or a line has no tag. The message has the line number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from error
    blocks = [*_blocks(text)]
    numbered = all(_is_numbered(block) for block in blocks)
    columns = (1, 2) if numbered else (0, -1)
    sentences: list[TaggedSentence] = []
    renamed_lines: list[int] = []
    for block in blocks:
        pairs = [_word_and_tag(path, line, *columns) for line in block]
        tags = [tag for _, tag in pairs]
        for i, tag in enumerate(tags):
            if tag.startswith("I-") and (i == 0 or tags[i - 1][2:] != tag[2:]):
                renamed_lines.append(block[i].number)
                tags[i] = f"B-{tag[2:]}"
        sentences.append(TaggedSentence(tuple(word for word, _ in pairs), tuple(tags)))
    if not sentences:
        raise DataError(f"{path}: the file contains no sentence; expected one word and its tag per line")
    if renamed_lines:
        logger.warning(
            "warning: %s: %d entities begin with I- (the first at line %d); they are read as if they began with B-",
            path,
            len(renamed_lines),
            renamed_lines[0],
        )
    return sentences


def _blocks(text: str) -> Iterator[list[_Line]]:
    """Yield the lines of each sentence, without comments."""
    # split only at line feeds: a word may contain another character that str.splitlines breaks at
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


def _is_numbered(block: Sequence[_Line]) -> bool:
    """Return whether the first column of a sentence counts its words from 1."""
    return all(
        "\t" in line.text and len(line.columns) > 2 and line.columns[0] == str(number)
        for number, line in enumerate(block, start=1)
    )


def _word_and_tag(path: Path, line: _Line, word_at: int, tag_at: int) -> tuple[str, str]:
    if len(line.columns) < 2 or not line.columns[word_at] or not _TAG.fullmatch(line.columns[tag_at]):
        raise DataError(
            f"{path}:{line.number}: got {line.text!r:.80}; expected a word and, in the last column, a tag: O, B-<kind> "
            "or I-<kind> (or tab-separated columns number, word, tag, with the words of each sentence numbered from 1)"
        )
    return line.columns[word_at], line.columns[tag_at]
