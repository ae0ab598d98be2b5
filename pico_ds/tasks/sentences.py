"""Tasks from sentences that a user gives: to tell masked words apart, or labels of whole sentences."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import regex
import torch

from pico_ds.config import Readout, SmlmtConfig
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.keyed_random import digest64, keyed_rng
from pico_ds.data.tokenizer import TextTokenizer
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.errors import TaskError
from pico_ds.tasks.layout import lay_out_one, name_tokens
from pico_ds.tasks.shape import TaskShapes

Kind = Literal["word", "label"]
_KINDS: tuple[Kind, ...] = ("word", "label")
#: draws of classes before a task is given up
_MAX_DRAWS = 1000
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


def read_sentences(path: Path) -> list[Sentence]:
    """Read a JSONL whose lines are `{"text": ..., "word": ...}`, or all of them `{"text": ..., "label": ...}`.

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
    for number, line in enumerate(lines, start=1):
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
    return parse_sentences(records)


def parse_sentences(records: Iterable[tuple[str, Any]]) -> list[Sentence]:
    """Check records, each with where it comes from. Sentences that stand there twice are taken once.

    Raises:
        TaskError: a record that is not as it should be.
    """
    found: dict[tuple[str, str], Sentence] = {}
    label_of: dict[str, Sentence] = {}
    first: Sentence | None = None
    for where, record in records:
        sentence = _parse(where, record)
        first = first or sentence
        if sentence.kind != first.kind:
            raise TaskError(
                f"{where}: has {sentence.kind!r}, but {first.where} has {first.kind!r}; give sentences of one kind"
            )
        other = label_of.setdefault(sentence.text, sentence)
        if sentence.kind == "label" and other.name != sentence.name:
            raise TaskError(
                f"{where}: label {sentence.name!r}, but the same text has label {other.name!r} at {other.where}; "
                "keep one of them"
            )
        found.setdefault((sentence.text, sentence.name), sentence)
    return [*found.values()]


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
        name = _lower(name)
        if not _occurrences(name).search(text):
            raise TaskError(f"{where}: the word {name!r} does not stand in the text {text!r:.80} as a whole word")
    return Sentence(text, name, kind, where)


def _lower(word: str) -> str:
    # the one letter that becomes two, of which no text holds the second; a search in any case finds it by `i`
    return word.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()


def _occurrences(word: str) -> regex.Pattern[str]:
    """Every occurrence as a whole word, in any case, with the space before it: a token of a word begins with it."""
    return regex.compile(rf"\s?(?<![\w\p{{M}}'’-]){re.escape(word)}(?![\w\p{{M}}'’-])", regex.IGNORECASE)


class SentenceTasks:
    """Tasks over given sentences.

    A task has n_way distinct classes and k_shot + q_query sentences of each. Where classes are words, no sentence of a
    task holds a word of another of its classes, and every occurrence of its own is masked.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        tokenizer: TextTokenizer,
        config: SmlmtConfig,
        seed: int,
        readout: Readout | None = None,
        name: str = "the sentences given",
    ) -> None:
        """
        Args:
            seed: key of the tasks.
            readout: overrides `config.readout`.
            name: of the sentences, for messages.

        Raises:
            TaskError: fewer than n_way classes with k_shot + q_query sentences, a sentence that holds a special token,
                or texts of two labels that are the same once they are cut.
        """
        self.readout: Readout = readout or config.readout
        self.sequence_length = config.context_tokens + LAYOUT_EXTRA_TOKENS
        self.shapes = TaskShapes(config, seed)
        self._key, self._name, self._tokenizer = ("sentences", seed), name, tokenizer
        laid_out = self._lay_out(sentences, config.context_tokens)
        by_class: dict[str, list[Sentence]] = {}
        for sentence in laid_out:
            by_class.setdefault(sentence.name, []).append(sentence)
        needed, n_way = self.shapes.largest.per_class, self.shapes.largest.n_way
        self.classes = sorted(name for name, members in by_class.items() if len(members) >= needed)
        if len(self.classes) < n_way:
            some = [f"{label} {len(members)}" for label, members in sorted(by_class.items())]
            counts = ", ".join([*some[:8], *(["..."] if some[8:] else [])])
            raise TaskError(
                f"{name}: {len(self.classes)} classes have smlmt.k_shot + smlmt.q_query = {needed} different "
                f"sentences, but smlmt.n_way is {n_way} (sentences by class: {counts}); "
                "give more sentences, or lower n_way, k_shot or q_query"
            )
        chosen = [sentence for name in self.classes for sentence in by_class[name]]
        self._first = np.cumsum([0, *(len(by_class[name]) for name in self.classes)])
        rows = [laid_out[sentence] for sentence in chosen]
        self._ids = torch.stack([row[0] for row in rows])
        self._lengths = torch.tensor([row[1] for row in rows])
        self._readout_index = torch.tensor([row[2] for row in rows])
        self._word_tokens = name_tokens(self.classes, tokenizer)
        self._others = self._words_within(chosen)

    def _lay_out(
        self, sentences: Sequence[Sentence], context_tokens: int
    ) -> dict[Sentence, tuple[torch.Tensor, int, int]]:
        """Each sentence as the model gets it; of those of a class that are the same then, the first."""
        own = {self._tokenizer.mask_id, self._tokenizer.pad_id, self._tokenizer.end_of_text_id}
        added = self._tokenizer.backend.get_added_tokens_decoder()
        special = [token.content for number, token in added.items() if token.special or number in own]
        found: dict[Sentence, tuple[torch.Tensor, int, int]] = {}
        first: dict[tuple[int, ...], dict[str, Sentence]] = {}
        for sentence in sentences:
            if held := [token for token in special if token in sentence.text or token in sentence.name]:
                raise TaskError(
                    f"{sentence.where}: holds {held[0]!r}, which is a special token of the tokenizer; "
                    "write it otherwise"
                )
            row = lay_out_one(*self._encode(sentence), self.readout, context_tokens, self._tokenizer)
            same = first.setdefault((*row[0].tolist(),), {})
            if sentence.kind == "label" and same and sentence.name not in same:
                other = next(iter(same.values()))
                raise TaskError(
                    f"{sentence.where}: label {sentence.name!r}, but cut to smlmt.context_tokens = {context_tokens} "
                    f"it is the same as {other.where}, which has label {other.name!r}; raise context_tokens, or keep "
                    "one of them"
                )
            if same.setdefault(sentence.name, sentence) is sentence:
                found[sentence] = row
        return found

    def _encode(self, sentence: Sentence) -> tuple[list[int], int]:
        """Token ids with every occurrence masked, and the place of the [MASK] that features are read at."""
        if sentence.kind == "label":
            tokens = self._tokenizer.encode([sentence.text])[0][: self.sequence_length - LAYOUT_EXTRA_TOKENS - 1]
            return [*tokens, self._tokenizer.mask_id], len(tokens)
        pieces = self._tokenizer.encode(_occurrences(sentence.name).split(sentence.text))
        tokens = pieces[0]
        for piece in pieces[1:]:
            tokens = [*tokens, self._tokenizer.mask_id, *piece]
        return tokens, len(pieces[0])

    def _words_within(self, sentences: Sequence[Sentence]) -> list[frozenset[int]]:
        """For each sentence the classes whose words stand in it beside its own; none where classes are labels."""
        place = {name: i for i, name in enumerate(self.classes)}
        if sentences[0].kind == "label":
            return [frozenset()] * len(sentences)
        any_class = regex.compile("|".join(_occurrences(name).pattern for name in self.classes), regex.IGNORECASE)
        # a few letters that match in any case have another lower case, such as the long s: no class is named so
        named = [{_lower(word.strip()) for word in any_class.findall(one.text)} for one in sentences]
        found = [{place[word] for word in words if word in place} for words in named]
        return [frozenset(words - {place[one.name]}) for words, one in zip(found, sentences, strict=True)]

    def sample(self, step: int, index: int) -> Episode:
        """Task `index` of outer step `step`; a pure function of (seed, step, index).

        Raises:
            TaskError: no draw of classes gave enough sentences that hold the word of one of them alone.
        """
        rng, shape = keyed_rng(*self._key, step, index), self.shapes.at(step, index)
        for _ in range(_MAX_DRAWS):
            classes = rng.choice(len(self.classes), size=shape.n_way, replace=False)
            chosen = [self._draw(int(label), set(classes.tolist()), rng)[: shape.per_class] for label in classes]
            if all(len(some) == shape.per_class for some in chosen):
                places = torch.from_numpy(np.stack(chosen))
                return Episode(
                    self._contexts(places[:, : shape.k_shot]),
                    self._contexts(places[:, shape.k_shot :]),
                    words=tuple(self.classes[label] for label in classes),
                    word_tokens=self._word_tokens[torch.from_numpy(classes)],
                    keys=(digest64("device", *self._key, step, index),),
                )
        raise TaskError(
            f"{self._name}: no {shape.n_way} words with {shape.per_class} sentences free of each other were found in "
            f"{_MAX_DRAWS} draws; give sentences that hold fewer of the words, or lower smlmt.n_way, k_shot or q_query"
        )

    def _draw(self, label: int, classes: set[int], rng: np.random.Generator) -> np.ndarray:
        """The sentences of a class that hold no word of another, in random order."""
        mine = np.arange(self._first[label], self._first[label + 1])
        usable = np.array([not self._others[place] & classes for place in mine], dtype=np.bool_)
        return rng.permutation(mine[usable])

    def _contexts(self, places: torch.Tensor) -> Contexts:
        n_way, per_class = places.shape
        rows = places.flatten()
        labels = torch.arange(n_way).repeat_interleave(per_class)
        return Contexts(self._ids[rows], self._lengths[rows], self._readout_index[rows], labels)
