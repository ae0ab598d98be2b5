"""Tasks from sentences that a user provides: classify masked words, or whole sentences by label."""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import regex
import torch

from pico_ds.config import Readout, SmlmtConfig
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.keyed_random import digest64, keyed_rng
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.errors import TaskError
from pico_ds.progress import progress, track
from pico_ds.tasks.context_encoding import encode_context, name_tokens
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.sentence_files import OnConflict, Sentence, lower_case, occurrences_of, without_conflicts
from pico_ds.tasks.task_shape import TaskShapes

#: samples of classes that are tried before a task fails
_MAX_DRAWS = 1000
_BATCH_SENTENCES = 2000
#: token ids, their number without padding, and the readout position
Row = tuple[torch.Tensor, int, int]


def encode_sentences(
    sentences: Sequence[Sentence],
    tokenizer: TextTokenizer,
    readout: Readout,
    context_tokens: int,
    on_conflict: OnConflict = "error",
) -> dict[Sentence, Row]:
    """Encode each sentence. If sentences of a class have the same encoding, only the first is kept.

    Raises:
        TaskError: a sentence contains a special token, or texts with different labels are equal after they are cut to
            `context_tokens`.
    """
    task_tokens = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_of_text_id}
    added = tokenizer.backend.get_added_tokens_decoder()
    special = [token.content for number, token in added.items() if token.special or number in task_tokens]
    any_special = regex.compile("|".join(map(re.escape, special)))
    for sentence in sentences:
        if match := any_special.search(sentence.text) or any_special.search(sentence.name):
            raise TaskError(
                f"{sentence.where}: contains {match.group()!r}, which is a special token of the tokenizer; "
                "rewrite the sentence without it"
            )
    encoded = zip(sentences, _encode(sentences, tokenizer, context_tokens), strict=True)
    rows: dict[Sentence, Row] = {}
    seen: set[tuple[Hashable, str]] = set()
    keys: dict[Sentence, bytes] = {}
    for sentence, (tokens, place) in track(encoded, "encoding sentences", len(sentences)):
        row = encode_context(tokens, place, readout, context_tokens, tokenizer)
        keys[sentence] = row[0].numpy().tobytes()
        if (keys[sentence], sentence.name) not in seen:
            seen.add((keys[sentence], sentence.name))
            rows[sentence] = row
    what = f"equal texts after they are cut to smlmt.context_tokens = {context_tokens}; --max_tokens raises it"
    kept = without_conflicts(rows, keys.__getitem__, what, on_conflict)
    return {sentence: rows[sentence] for sentence in kept}


def _encode(
    sentences: Sequence[Sentence], tokenizer: TextTokenizer, context_tokens: int
) -> Iterator[tuple[list[int], int]]:
    """Yield token ids with every occurrence of the word masked, and the position of the [MASK] that is read."""
    pieces = [
        [sentence.text] if sentence.kind == "label" else occurrences_of(sentence.name).split(sentence.text)
        for sentence in sentences
    ]
    encoded: list[list[int]] = []
    with progress("tokenizing sentences", len(pieces)) as work:
        for start in range(0, len(pieces), _BATCH_SENTENCES):
            batch = pieces[start : start + _BATCH_SENTENCES]
            encoded += tokenizer.encode([piece for parts in batch for piece in parts])
            work.advance(len(batch))
    place = 0
    for sentence, parts in zip(sentences, pieces, strict=True):
        tokens, *others = encoded[place : place + len(parts)]
        place += len(parts)
        if sentence.kind == "label":
            tokens = tokens[: context_tokens - 1]
            others = [[]]
        mask_place = len(tokens)
        for piece in others:
            tokens = [*tokens, tokenizer.mask_id, *piece]
        yield tokens, mask_place


class SentenceTasks:
    """Tasks over given sentences.

    A task has n_way distinct classes and k_shot + q_query sentences of each. If classes are words, no sentence of a
    task contains the word of another class of the task, and every occurrence of the word of its class is masked.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        tokenizer: TextTokenizer,
        config: SmlmtConfig,
        seed: int,
        readout: Readout | None = None,
        name: str = "the given sentences",
        rows: Mapping[Sentence, Row] | None = None,
    ) -> None:
        """
        Args:
            seed: seed of the tasks.
            readout: overrides `config.readout`.
            name: name of the sentences, for messages.
            rows: result of `encode_sentences`, to share it between several task shapes.

        Raises:
            TaskError: fewer than n_way classes have k_shot + q_query sentences, or `encode_sentences` fails.
        """
        self.readout: Readout = readout or config.readout
        self.sequence_length = config.context_tokens + LAYOUT_EXTRA_TOKENS
        self.shapes = TaskShapes(config, seed)
        self._key, self._name = ("sentences", seed), name
        encoded = rows
        if encoded is None:
            encoded = encode_sentences(sentences, tokenizer, self.readout, config.context_tokens)
        by_class: dict[str, list[Sentence]] = {}
        for sentence in encoded:
            by_class.setdefault(sentence.name, []).append(sentence)
        needed, n_way = self.shapes.largest.per_class, self.shapes.largest.n_way
        self.classes = sorted(name for name, members in by_class.items() if len(members) >= needed)
        if len(self.classes) < n_way:
            sizes = [f"{label} {len(members)}" for label, members in sorted(by_class.items())]
            counts = ", ".join([*sizes[:8], *(["..."] if sizes[8:] else [])])
            raise TaskError(
                f"{name}: {len(self.classes)} classes have smlmt.k_shot + smlmt.q_query = {needed} different "
                f"sentences, but smlmt.n_way is {n_way} (sentences by class: {counts}); "
                "add sentences, or lower n_way, k_shot or q_query"
            )
        chosen = [sentence for name in self.classes for sentence in by_class[name]]
        self._first = np.cumsum([0, *(len(by_class[name]) for name in self.classes)])
        ids, lengths, places = zip(*(encoded[sentence] for sentence in chosen), strict=True)
        self._ids, self._lengths, self._readout_index = torch.stack(ids), torch.tensor(lengths), torch.tensor(places)
        self._word_tokens = name_tokens(self.classes, tokenizer)
        self._other_classes = self._other_classes_in(chosen)

    def _other_classes_in(self, sentences: Sequence[Sentence]) -> list[frozenset[int]] | None:
        """Return the other classes whose words each sentence contains; None if classes are labels."""
        place = {name: i for i, name in enumerate(self.classes)}
        if sentences[0].kind == "label":
            return None
        any_class = regex.compile("|".join(occurrences_of(name).pattern for name in self.classes), regex.IGNORECASE)
        # a few letters, such as the long s, match case-insensitively but have a different lower case; no class has them
        matches = [{lower_case(word.strip()) for word in any_class.findall(sentence.text)} for sentence in sentences]
        found = [{place[word] for word in words if word in place} for words in matches]
        return [frozenset(words - {place[sentence.name]}) for words, sentence in zip(found, sentences, strict=True)]

    def sample(self, step: int, index: int) -> Episode:
        """Return task `index` of outer step `step`, a pure function of (seed, step, index).

        Raises:
            TaskError: no sample of classes had enough sentences that contain the word of only one class.
        """
        rng, shape = keyed_rng(*self._key, step, index), self.shapes.at(step, index)
        for _ in range(_MAX_DRAWS):
            classes = rng.choice(len(self.classes), size=shape.n_way, replace=False)
            chosen = [self._candidates(int(label), set(classes.tolist()), rng)[: shape.per_class] for label in classes]
            if all(len(places) == shape.per_class for places in chosen):
                places = torch.from_numpy(np.stack(chosen))
                return Episode(
                    self._contexts(places[:, : shape.k_shot]),
                    self._contexts(places[:, shape.k_shot :]),
                    words=tuple(self.classes[label] for label in classes),
                    word_tokens=self._word_tokens[torch.from_numpy(classes)],
                    keys=(digest64("device", *self._key, step, index),),
                )
        raise TaskError(
            f"{self._name}: {_MAX_DRAWS} random samples found no {shape.n_way} words with {shape.per_class} sentences "
            "each that contain none of the other words; use sentences with fewer of the words, or lower smlmt.n_way, "
            "k_shot or q_query"
        )

    def _candidates(self, label: int, classes: set[int], rng: np.random.Generator) -> np.ndarray:
        """Return the sentences of a class without the words of other classes, in random order."""
        places = np.arange(self._first[label], self._first[label + 1])
        if self._other_classes is not None:
            is_free = [not self._other_classes[place] & classes for place in places]
            places = places[np.array(is_free, dtype=np.bool_)]
        return rng.permutation(places)

    def _contexts(self, places: torch.Tensor) -> Contexts:
        n_way, per_class = places.shape
        rows = places.flatten()
        labels = torch.arange(n_way).repeat_interleave(per_class)
        return Contexts(self._ids[rows], self._lengths[rows], self._readout_index[rows], labels)
