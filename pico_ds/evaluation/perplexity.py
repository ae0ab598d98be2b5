"""Perplexity on a dataset of texts, by domain."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from pico_ds.config import PerplexityConfig, RunConfig
from pico_ds.data.input_files import Document
from pico_ds.data.keyed_random import digest64
from pico_ds.data.text.perplexity_texts import read_texts
from pico_ds.data.text.tokenizer import TextTokenizer, warn_about_special_tokens
from pico_ds.engine.distributed import Process
from pico_ds.errors import DataError
from pico_ds.file_writing import replace_text
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.progress import track

#: rows are padded to a multiple of this, so that compilation sees few shapes [tokens]
_LENGTH_STEP = 64
#: texts that are tokenized in one call
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Perplexity:
    """Token-weighted loss and perplexity of some texts.

    Attributes:
        loss: mean next-token cross-entropy [nats per token].
        n_tokens: number of predicted tokens.
    """

    loss: float
    n_tokens: int

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinite if the exponential overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def to_json(self) -> dict[str, float | None]:
        """Return the values for a JSON file. An infinite perplexity becomes null."""
        return {**asdict(self), "perplexity": self.perplexity if math.isfinite(self.perplexity) else None}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Perplexity":
        """Restore the result of `to_json`."""
        return cls(content["loss"], content["n_tokens"])


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity over all tokens, and by domain."""

    total: Perplexity
    by_domain: dict[str, Perplexity]

    def to_json(self) -> dict[str, Any]:
        """Return the values for a JSON file."""
        by_domain = {name: result.to_json() for name, result in self.by_domain.items()}
        return {**self.total.to_json(), "by_domain": by_domain}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PerplexityResult":
        """Restore the result of `to_json`."""
        by_domain = {name: Perplexity.from_json(result) for name, result in content["by_domain"].items()}
        return cls(Perplexity.from_json(content), by_domain)

    def write(self, path: Path, about: dict[str, object]) -> None:
        """Write the result and the metadata `about` as JSON."""
        replace_text(path, json.dumps({**about, **self.to_json()}, indent=1) + "\n")


class PerplexityDataset:
    """Rows of at most `length` tokens, in which every token of a text except its first is predicted exactly once."""

    def __init__(
        self, texts: Iterable[tuple[str, Document]], tokenizer: TextTokenizer, vocab_size: int, length: int
    ) -> None:
        """
        Args:
            texts: pairs of a domain and a text or its token ids.
            vocab_size: vocabulary size of the model. Token ids must be smaller.
            length: maximum row length [tokens]. Longer texts are split into windows that overlap by one token.

        Raises:
            DataError: a token id is outside the vocabulary of the model, or no text has two tokens.
        """
        self.pad_id = tokenizer.pad_id
        self.domains: list[str] = []
        numbers: dict[str, int] = {}
        rows: list[tuple[int, npt.NDArray[np.int64]]] = []
        special = Counter[str]()
        for domain, ids in _tokenized(texts, tokenizer, special):
            if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
                raise DataError(
                    f"evaluation.perplexity.data: token ids from {ids.min()} to {ids.max()}, but the model has "
                    f"{vocab_size}; give text, or token ids from the tokenizer of the model"
                )
            number = numbers.setdefault(domain, len(numbers))
            rows += [
                (number, ids[first : first + length]) for first in range(0, max(0, len(ids) - 1), max(1, length - 1))
            ]
        warn_about_special_tokens(special)
        if not rows:
            raise DataError(
                "evaluation.perplexity.data: no text has two or more tokens, so there is nothing to predict"
            )
        self.domains = list(numbers)
        # sort by length, so that there is little padding and batches do not depend on the number of ranks
        rows.sort(key=lambda row: -len(row[1]))
        self.rows = [ids for _, ids in rows]
        self.domain_of_row = np.array([number for number, _ in rows])
        self.tokens_of_row = np.array([len(ids) - 1 for ids in self.rows])

    def read(self, first: int, count: int) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length_less_1"]]:
        """Return right-padded token ids, and the target of each token except the last. Padding has target -100."""
        rows = self.rows[first : first + count]
        padded_length = -(-(len(rows[0]) - 1) // _LENGTH_STEP) * _LENGTH_STEP + 1
        ids = torch.full((len(rows), padded_length), self.pad_id)
        targets = torch.full((len(rows), padded_length - 1), -100)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.from_numpy(row)
            targets[index, : len(row) - 1] = torch.from_numpy(row[1:])
        return ids, targets


def _tokenized(
    texts: Iterable[tuple[str, Document]], tokenizer: TextTokenizer, special: Counter[str]
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yield the domain and the token ids of each text. Special tokens that occur in texts are counted in `special`."""
    source = track(texts, "tokenizing texts for perplexity")
    while batch := [row for _, row in zip(range(_TEXTS_AT_ONCE), source, strict=False)]:
        strings = [text for _, text in batch if isinstance(text, str)]
        special.update(tokenizer.count_special(strings))
        encoded = iter(tokenizer.encode(strings))
        for domain, text in batch:
            yield domain, np.asarray(next(encoded), dtype=np.int64) if isinstance(text, str) else text


def perplexity_dataset_name(config: PerplexityConfig) -> str:
    """Return the name for result files: the stem of the path of the texts, and a digest of the settings."""
    assert config.data is not None
    name = re.sub(r"[^\w.-]+", "-", Path(config.data).stem).strip("-")
    return f"{name}_{digest64(config.model_dump_json()) >> 32:08x}"


@torch.no_grad()
def evaluate_perplexity(
    network: FunctionalModel,
    theta: Parameters,
    rows: PerplexityDataset,
    micro_batch_size: int,
    process: Process,
    should_continue: Callable[[], bool],
) -> PerplexityResult:
    """Return the token-weighted loss and perplexity. A collective; results are bitwise equal on any number of ranks.

    When `should_continue` returns False, the rank skips its remaining rows.
    """
    losses = torch.zeros(len(rows.rows), dtype=torch.float64, device=process.device)
    batches = range(process.rank, -(-len(rows.rows) // micro_batch_size), process.world_size)
    for batch in track(batches, "computing perplexity, batches", len(batches)):
        if not should_continue():
            break
        first = batch * micro_batch_size
        ids, targets = (each.to(process.device) for each in rows.read(first, micro_batch_size))
        by_token = network.token_losses(theta, network.hidden(theta, ids[:, :-1]).flatten(0, 1), targets.flatten())
        losses[first : first + len(ids)] = by_token.unflatten(0, targets.shape).double().sum(-1)
    # only one rank computed each row, so the sum over ranks is exact
    by_row = process.sum_over_ranks(losses).cpu().numpy()
    by_domain = {}
    for number, domain in enumerate(rows.domains):
        if (in_domain := rows.domain_of_row == number).any():
            by_domain[domain] = _mean(by_row[in_domain], rows.tokens_of_row[in_domain])
    return PerplexityResult(_mean(by_row, rows.tokens_of_row), by_domain)


def _mean(losses: npt.NDArray[np.float64], n_tokens: npt.NDArray[np.int64]) -> Perplexity:
    count = int(n_tokens.sum())
    return Perplexity(float(losses.sum()) / count, count)


def build_perplexity_dataset(config: RunConfig, tokenizer: TextTokenizer, vocab_size: int) -> PerplexityDataset | None:
    """Return the texts of `evaluation.perplexity`, or None if the configuration has none.

    Raises:
        DataError: the texts cannot be read or used.
    """
    settings = config.evaluation.perplexity
    if settings.data is None:
        return None
    return PerplexityDataset(
        read_texts(settings), tokenizer, vocab_size, settings.max_length or config.model.max_seq_len
    )
