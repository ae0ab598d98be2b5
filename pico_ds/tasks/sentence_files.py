"""Sentences that a user gives, with a word to mask or a label."""

import json
import logging
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import regex

from pico_ds.errors import TaskError
from pico_ds.progress import track

logger = logging.getLogger("pico_ds")

Kind = Literal["word", "label"]
_KINDS: tuple[Kind, ...] = ("word", "label")
#: what is done with texts of several labels
OnConflict = Literal["error", "drop"]
#: conflicts that a message shows
_SHOWN_CONFLICTS = 100
#: what JSON may hold and no encoding of text
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Sentence:
    """A text with its class: a word in it, which is masked, or a label, for which [MASK] is added at the end.

    Attributes:
        where: it comes from, for messages.
    """

    text: str
    name: str
    kind: Kind
    where: str


def read_sentences(path: Path, on_conflict: OnConflict = "error") -> list[Sentence]:
    """Read a JSONL whose lines are `{"text": ..., "word": ...}`, or all of them `{"text": ..., "label": ...}`.

    Args:
        on_conflict: what is done with texts of several labels.

    Raises:
        TaskError: a file that cannot be read, or a line that is not as it should be, with its number.
    """
    try:
        # at line feeds alone: a string of JSON may hold a character that other tools break lines at
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise TaskError(f"{path} is not UTF-8: {error}") from error
    records = []
    for number, line in enumerate(track(lines, f"reading {path}", len(lines)), start=1):
        if not line.strip():
            continue
        try:
            records.append((f"{path}:{number}", json.loads(line)))
        except ValueError as error:
            raise TaskError(f"{path}:{number}: not JSON ({error}); one object a line is expected") from error
        except RecursionError as error:
            raise TaskError(f"{path}:{number}: nested too deeply; one object of strings a line is expected") from error
    if not records:
        raise TaskError(f"{path}: holds no sentence; one JSON object a line is expected, with text, and word or label")
    return parse_sentences(records, on_conflict)


def parse_sentences(records: Iterable[tuple[str, Any]], on_conflict: OnConflict = "error") -> list[Sentence]:
    """Check records, each with where it comes from. Sentences that stand there twice are taken once.

    Raises:
        TaskError: a record that is not as it should be, or texts of several labels, all of which are named.
    """
    found: dict[tuple[str, str], Sentence] = {}
    first: Sentence | None = None
    for where, record in records:
        sentence = _parse(where, record)
        first = first or sentence
        if sentence.kind != first.kind:
            raise TaskError(
                f"{where}: has {sentence.kind!r}, but {first.where} has {first.kind!r}; give sentences of one kind"
            )
        found.setdefault((sentence.text, sentence.name), sentence)
    return without_conflicts(found.values(), lambda sentence: sentence.text, "the same text", on_conflict)


def without_conflicts(
    sentences: Iterable[Sentence], key: Callable[[Sentence], Hashable], what: str, on_conflict: OnConflict
) -> list[Sentence]:
    """The sentences, of which no two with one key have different labels.

    Args:
        what: sentences with one key share, for the message.

    Raises:
        TaskError: there are some, and `on_conflict` is "error".
    """
    kept, by_key = [*sentences], dict[Hashable, list[Sentence]]()
    for sentence in kept:
        if sentence.kind == "label":
            by_key.setdefault(key(sentence), []).append(sentence)
    conflicts = {place: members for place, members in by_key.items() if len({one.name for one in members}) > 1}
    if not conflicts:
        return kept
    if on_conflict == "drop":
        logger.warning("warning: left out %d texts with several labels (--on_conflict drop)", len(conflicts))
        return [sentence for sentence in kept if sentence.kind != "label" or key(sentence) not in conflicts]
    lines = [", ".join(f"{one.name!r} at {one.where}" for one in members) for members in conflicts.values()]
    shown = [*lines[:_SHOWN_CONFLICTS], *(["..."] if lines[_SHOWN_CONFLICTS:] else [])]
    raise TaskError(
        f"{len(conflicts)} texts have several labels ({what}); keep one label of each, or leave these texts out "
        "(--on_conflict drop of scripts/evaluate.py):\n" + "\n".join(f"  - {line}" for line in shown)
    )


def _parse(where: str, record: Any) -> Sentence:
    if not isinstance(record, Mapping):
        raise TaskError(f"{where}: got {record!r:.80}; expected an object with text, and word or label")
    for key in record:
        if key not in ("text", *_KINDS):
            near = get_close_matches(str(key), ("text", *_KINDS), n=1)
            raise TaskError(
                f"{where}: unknown key {key!r}; "
                + (f"did you mean {near[0]!r}?" if near else "keys: text, word, label")
            )
    kinds = [kind for kind in _KINDS if kind in record]
    if len(kinds) != 1:
        raise TaskError(f"{where}: has {' and '.join(kinds) or 'neither word nor label'}; expected exactly one of both")
    for key in ("text", kinds[0]):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise TaskError(f"{where}: {key}: got {record.get(key)!r:.80}; expected a string that is not empty")
        if lone := _SURROGATE.search(record[key]):
            raise TaskError(
                f"{where}: {key}: holds {lone.group()!a}, half of a character; write the whole one, or none"
            )
    text, name, kind = record["text"].strip(), record[kinds[0]].strip(), kinds[0]
    if kind == "word":
        name = lower_case(name)
        if not occurrences_of(name).search(text):
            raise TaskError(f"{where}: the word {name!r} does not stand in the text {text!r:.80} as a whole word")
    return Sentence(text, name, kind, where)


def lower_case(word: str) -> str:
    """A word in small letters, each of them one character."""
    # the one letter that becomes two, of which no text holds the second; a search in any case finds it by `i`
    return word.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()


def occurrences_of(word: str) -> regex.Pattern[str]:
    """Every occurrence as a whole word, in any case, with the space before it: a token of a word begins with it."""
    return regex.compile(rf"\s?(?<![\w\p{{M}}'’-]){re.escape(word)}(?![\w\p{{M}}'’-])", regex.IGNORECASE)
