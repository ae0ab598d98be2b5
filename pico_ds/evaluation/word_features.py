"""Decoder states at the words of sentences, and batches of sentences of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.evaluation.conll_files import TaggedSentence
from pico_ds.model.decoder import PicoDecoder

#: sentences per forward pass without gradients
_INFERENCE_BATCH_SIZE = 64
#: number of batches whose sentences are sorted by length together
_SORTED_BATCHES = 16


@dataclass(frozen=True)
class EncodedSentence:
    """A tokenized sentence. The label of a word is at its last token, because only that token sees the whole word."""

    ids: Int[Tensor, " length"]
    last: Int[Tensor, " words"]
    labels: Int[Tensor, " words"]


class WordStates:
    """Decoder states at the last token of every word. For a frozen decoder they are computed only once."""

    def __init__(self, decoder: PicoDecoder, pad_id: int, frozen: bool) -> None:
        self._decoder, self._pad_id = decoder, pad_id
        self._known: dict[int, Tensor] | None = {} if frozen else None

    def __call__(self, sentences: Sequence[EncodedSentence]) -> Float[Tensor, "words width"]:
        """Return the states of all words of the sentences, in order."""
        if self._known is None:
            return self._compute(sentences)
        return torch.cat([self._known[id(sentence)] for sentence in sentences])

    @torch.no_grad()
    def compute_once(self, sentences: Sequence[EncodedSentence]) -> None:
        """Compute and cache the states of a frozen decoder for later calls."""
        assert self._known is not None
        for chosen in batches_by_length(sentences):
            states = self._compute(chosen).split([len(sentence.last) for sentence in chosen])
            self._known |= {id(sentence): state for sentence, state in zip(chosen, states, strict=True)}

    def _compute(self, sentences: Sequence[EncodedSentence]) -> Float[Tensor, "words width"]:
        device = self._decoder.embedding_proj.weight.device
        ids = nn.utils.rnn.pad_sequence(
            [sentence.ids for sentence in sentences], batch_first=True, padding_value=self._pad_id
        )
        hidden = self._decoder.hidden(ids.to(device))
        rows = torch.cat([torch.full_like(sentence.last, row) for row, sentence in enumerate(sentences)])
        return hidden[rows.to(device), torch.cat([sentence.last for sentence in sentences]).to(device)]


def encode_sentences(
    sentences: Sequence[TaggedSentence], tokenizer: TextTokenizer, tags: Sequence[str], max_length: int
) -> list[EncodedSentence]:
    """Tokenize sentences. Words that do not end within the first `max_length` tokens are dropped."""
    number = {tag: index for index, tag in enumerate(tags)}
    encoded = []
    for sentence in sentences:
        words = tokenizer.encode([word if i == 0 else f" {word}" for i, word in enumerate(sentence.words)])
        ends = torch.tensor([len(word) for word in words]).cumsum(0)
        kept = int((ends <= max_length).sum())
        ids = torch.tensor([token for word in words[:kept] for token in word] or [tokenizer.end_of_text_id])
        labels = torch.tensor([number[tag] for tag in sentence.tags[:kept]], dtype=torch.int64)
        encoded.append(EncodedSentence(ids, ends[:kept] - 1, labels))
    return encoded


def batches_by_length(sentences: Sequence[EncodedSentence]) -> Iterator[list[EncodedSentence]]:
    """Yield all sentences in batches of similar length, which avoids computation on padding."""
    ordered = sorted(sentences, key=lambda sentence: len(sentence.ids))
    return map(list, _batches(ordered, _INFERENCE_BATCH_SIZE))


def training_batches(
    sentences: Sequence[EncodedSentence], size: int, generator: torch.Generator
) -> Iterator[list[EncodedSentence]]:
    """Yield all sentences in random batches of similar length: sorted within random groups of several batches."""
    order = torch.randperm(len(sentences), generator=generator).tolist()
    groups = _batches([sentences[index] for index in order], size * _SORTED_BATCHES)
    batches = [
        batch for group in groups for batch in _batches(sorted(group, key=lambda sentence: len(sentence.ids)), size)
    ]
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def _batches(sentences: Sequence[EncodedSentence], size: int) -> Iterator[list[EncodedSentence]]:
    for first in range(0, len(sentences), size):
        yield [*sentences[first : first + size]]
