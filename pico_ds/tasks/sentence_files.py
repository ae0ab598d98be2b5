"""Reads sentences that a user provides, each with a word to mask or a label."""

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
#: what to do with texts that have several labels
OnConflict = Literal["error", "drop"]
#: maximum number of conflicts in a message
_SHOWN_CONFLICTS = 100
#: code points that JSON can represent but UTF-8 cannot
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Sentence:
    """A text with its class: a word in it, which is masked, or a label, for which a [MASK] is added at the end.

    Attributes:
        where: origin of the sentence, for messages.
    """

    text: str
    name: str
    kind: Kind
    where: str


def read_sentences(path: Path, on_conflict: OnConflict = "error") -> list[Sentence]:
    """Read a JSONL file whose lines are all `{"text": ..., "word": ...}` or all `{"text": ..., "label": ...}`.

    Args:
        on_conflict: what to do with texts that have several labels.

    Raises:
        TaskError: the file cannot be read, or a line is invalid; the message has the line number.
    """
    try:
        # split only at line feeds: a JSON string may contain other characters at which `splitlines` splits
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
            raise TaskError(f"{path}:{number}: not JSON ({error}); expected one JSON object per line") from error
        except RecursionError as error:
            raise TaskError(
                f"{path}:{number}: nested too deeply; expected one JSON object of strings per line"
            ) from error
    if not records:
        raise TaskError(f"{path}: has no sentences; expected one JSON object per line, with text, and word or label")
    return parse_sentences(records, on_conflict)


def parse_sentences(records: Iterable[tuple[str, Any]], on_conflict: OnConflict = "error") -> list[Sentence]:
    """Check records and return their sentences, without duplicates.

    Args:
        records: (origin, record) pairs.

    Raises:
        TaskError: a record is invalid, or texts have several labels (the message lists them) and `on_conflict` is
            "error".
    """
    found: dict[tuple[str, str], Sentence] = {}
    first: Sentence | None = None
    for where, record in records:
        sentence = _parse(where, record)
        first = first or sentence
        if sentence.kind != first.kind:
            raise TaskError(
                f"{where}: has {sentence.kind!r}, but {first.where} has {first.kind!r}; all sentences need the same key"
            )
        found.setdefault((sentence.text, sentence.name), sentence)
    return without_conflicts(found.values(), lambda sentence: sentence.text, "the same text", on_conflict)


def without_conflicts(
    sentences: Iterable[Sentence], key: Callable[[Sentence], Hashable], what: str, on_conflict: OnConflict
) -> list[Sentence]:
    """Return the sentences without those that have the same key but different labels.

    Args:
        what: description of equal keys, for the message.

    Raises:
        TaskError: there are conflicts, and `on_conflict` is "error".
    """
    kept, by_key = [*sentences], dict[Hashable, list[Sentence]]()
    for sentence in kept:
        if sentence.kind == "label":
            by_key.setdefault(key(sentence), []).append(sentence)
    conflicts = {
        place: members for place, members in by_key.items() if len({sentence.name for sentence in members}) > 1
    }
    if not conflicts:
        return kept
    if on_conflict == "drop":
        logger.warning("warning: dropped %d texts that have several labels (--on_conflict drop)", len(conflicts))
        return [sentence for sentence in kept if sentence.kind != "label" or key(sentence) not in conflicts]
    lines = [
        ", ".join(f"{sentence.name!r} at {sentence.where}" for sentence in members) for members in conflicts.values()
    ]
    shown = [*lines[:_SHOWN_CONFLICTS], *(["..."] if lines[_SHOWN_CONFLICTS:] else [])]
    raise TaskError(
        f"{len(conflicts)} texts have several labels ({what}); keep one label for each text, or drop these texts "
        "(scripts/evaluate.py --on_conflict drop):\n" + "\n".join(f"  - {line}" for line in shown)
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
        raise TaskError(f"{where}: has {' and '.join(kinds) or 'neither word nor label'}; expected exactly one of them")
    for key in ("text", kinds[0]):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise TaskError(f"{where}: {key}: got {record.get(key)!r:.80}; expected a non-empty string")
        if surrogate := _SURROGATE.search(record[key]):
            raise TaskError(
                f"{where}: {key}: contains {surrogate.group()!a}, half of a character; write the whole character, or "
                "remove it"
            )
    text, name, kind = record["text"].strip(), record[kinds[0]].strip(), kinds[0]
    if kind == "word":
        name = lower_case(name)
        if not occurrences_of(name).search(text):
            raise TaskError(f"{where}: the word {name!r} is not in the text {text!r:.80} as a whole word")
    return Sentence(text, name, kind, where)


def lower_case(word: str) -> str:
    """Return a word in lower case, with the same number of characters."""
    # `lower` turns this letter into two characters, which no text contains; a case-insensitive search finds it by `i`
    return word.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()


def occurrences_of(word: str) -> regex.Pattern[str]:
    """Return a pattern of the whole word in any case, with the space before it, which is part of its token."""
    return regex.compile(rf"\s?(?<![\w\p{{M}}'’-]){re.escape(word)}(?![\w\p{{M}}'’-])", regex.IGNORECASE)
