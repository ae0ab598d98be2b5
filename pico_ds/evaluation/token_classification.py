"""Fine-tuning for token classification, as pico-maml judges its models on Universal NER."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from torch import Tensor, nn

from pico_ds.data.keyed_random import digest64
from pico_ds.data.tokenizer import TextTokenizer
from pico_ds.evaluation.conll import TaggedSentence
from pico_ds.model.decoder import PicoDecoder

#: head: the decoder stays as it is; full: all of it is trained
Mode = Literal["head", "full"]
MODES: tuple[Mode, ...] = ("head", "full")
#: label of positions that are no last token of a word, which the loss leaves out
_IGNORED = -100


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned; the same for every model that is compared.

    Attributes:
        max_epochs: passes over the training sentences.
        patience: epochs without a better F1 on the dev set before it ends.
        batch_size: sentences of a step.
        head_lr, body_lr: AdamW's learning rates of the classifier and of the decoder.
    """

    max_epochs: int = 20
    patience: int = 3
    batch_size: int = 16
    head_lr: float = 3e-3
    body_lr: float = 3e-4


@dataclass(frozen=True)
class Splits:
    """Sentences to train on, to stop by, and to report."""

    train: list[TaggedSentence]
    dev: list[TaggedSentence]
    test: list[TaggedSentence]

    @staticmethod
    def of_one(sentences: Sequence[TaggedSentence]) -> "Splits":
        """70 % to train on, 15 % to stop by, 15 % to report; a sentence's place depends on its words alone."""
        ordered = sorted(sentences, key=lambda sentence: digest64("ner split", *sentence.words))
        first, second = round(0.7 * len(ordered)), round(0.85 * len(ordered))
        return Splits(ordered[:first], ordered[first:second], ordered[second:])

    @property
    def tags(self) -> list[str]:
        """All tags, in order."""
        return sorted({tag for part in (self.train, self.dev, self.test) for one in part for tag in one.tags})


@dataclass(frozen=True)
class _Encoded:
    """A sentence as tokens; the last token of a word carries its label, for it has seen the whole word."""

    ids: Int[Tensor, " length"]
    last: Int[Tensor, " words"]
    labels: Int[Tensor, " words"]


def fine_tune(
    decoder: PicoDecoder,
    tokenizer: TextTokenizer,
    splits: Splits,
    mode: Mode,
    seed: int,
    max_length: int,
    settings: FineTuning = FineTuning(),
) -> float:
    """Entity F1 (seqeval, strict IOB2) on the test set at the epoch that is best on the dev set.

    Args:
        decoder: is not changed.
        seed: of the classifier's first weights and of the order of the sentences.
        max_length: longest sentence [tokens]; words beyond it are predicted as O.
    """
    device, tags = decoder.embedding_proj.weight.device, splits.tags
    train, dev, test = (_encode(part, tokenizer, tags, max_length) for part in (splits.train, splits.dev, splits.test))
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.Linear(decoder.embedding_proj.embedding_dim, len(tags))
    nn.init.normal_(classifier.weight, std=0.02, generator=generator)
    nn.init.zeros_(classifier.bias)
    classifier.to(device)
    groups = [{"params": list(classifier.parameters()), "lr": settings.head_lr}]
    if mode == "full":
        decoder = copy.deepcopy(decoder).requires_grad_()
        groups.append({"params": list(decoder.parameters()), "lr": settings.body_lr})
    optimizer = torch.optim.AdamW(groups)
    best, at_best, waited = -1.0, 0.0, 0
    for _ in range(settings.max_epochs):
        for batch in _batches(torch.randperm(len(train), generator=generator).tolist(), settings.batch_size):
            chosen = [train[place] for place in batch]
            logits = _logits(decoder, classifier, chosen, tokenizer.pad_id, device, train_body=mode == "full")
            loss = F.cross_entropy(logits, torch.cat([one.labels for one in chosen]).to(device), ignore_index=_IGNORED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        score = _f1(decoder, classifier, dev, splits.dev, tags, tokenizer, device, settings.batch_size)
        if score > best:
            best, waited = score, 0
            at_best = _f1(decoder, classifier, test, splits.test, tags, tokenizer, device, settings.batch_size)
        else:
            waited += 1
        if waited >= settings.patience:
            break
    return at_best


def _encode(
    sentences: Sequence[TaggedSentence], tokenizer: TextTokenizer, tags: Sequence[str], max_length: int
) -> list[_Encoded]:
    number = {tag: place for place, tag in enumerate(tags)}
    encoded = []
    for sentence in sentences:
        words = tokenizer.encode([word if i == 0 else f" {word}" for i, word in enumerate(sentence.words)])
        ends = torch.tensor([len(word) for word in words]).cumsum(0)
        kept = int((ends <= max_length).sum())
        ids = torch.tensor([token for word in words[:kept] for token in word] or [tokenizer.end_of_text_id])
        labels = torch.tensor([number[tag] for tag in sentence.tags[:kept]], dtype=torch.int64)
        encoded.append(_Encoded(ids, ends[:kept] - 1, labels))
    return encoded


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    rest = iter(order)
    while batch := list(islice(rest, size)):
        yield batch


def _logits(
    decoder: PicoDecoder,
    classifier: nn.Module,
    sentences: Sequence[_Encoded],
    pad_id: int,
    device: torch.device,
    train_body: bool,
) -> Float[Tensor, "words tags"]:
    ids = nn.utils.rnn.pad_sequence([one.ids for one in sentences], batch_first=True, padding_value=pad_id).to(device)
    with torch.set_grad_enabled(train_body):
        hidden = decoder.hidden(ids)
    rows = torch.cat([torch.full_like(one.last, row) for row, one in enumerate(sentences)])
    return classifier(hidden[rows.to(device), torch.cat([one.last for one in sentences]).to(device)])


@torch.no_grad()
def _f1(
    decoder: PicoDecoder,
    classifier: nn.Module,
    encoded: Sequence[_Encoded],
    sentences: Sequence[TaggedSentence],
    tags: Sequence[str],
    tokenizer: TextTokenizer,
    device: torch.device,
    batch_size: int,
) -> float:
    predicted: list[list[str]] = []
    for batch in _batches(list(range(len(encoded))), batch_size):
        chosen = [encoded[place] for place in batch]
        best = _logits(decoder, classifier, chosen, tokenizer.pad_id, device, train_body=False).argmax(-1).tolist()
        named = iter(tags[place] for place in best)
        for place in batch:
            found = list(islice(named, len(encoded[place].labels)))
            predicted.append([*found, *["O"] * (len(sentences[place].tags) - len(found))])
    score = f1_score([list(one.tags) for one in sentences], predicted, mode="strict", scheme=IOB2, zero_division=0)
    return 0.0 if math.isnan(score) else float(score)
