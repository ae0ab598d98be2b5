"""Evaluation by fine-tuning on token classification, as pico-maml does on Universal NER."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from torch import nn

from pico_ds.data.keyed_random import keyed_uniform
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.engine.distributed import Process
from pico_ds.errors import DataError
from pico_ds.evaluation.conll_files import TaggedSentence
from pico_ds.evaluation.few_shot_grid import Model
from pico_ds.evaluation.word_features import (
    EncodedSentence,
    WordStates,
    batches_by_length,
    encode_sentences,
    training_batches,
)
from pico_ds.file_writing import replace_text
from pico_ds.meta.functional_model import Parameters
from pico_ds.model.decoder import PicoDecoder
from pico_ds.model.meta_model import DECODER
from pico_ds.progress import progress

#: head: only the classifier is trained; full: the decoder is trained too
Mode = Literal["head", "full"]
MODES: tuple[Mode, ...] = ("head", "full")
_TRAIN_SHARE, _DEV_SHARE = 0.7, 0.15
#: smallest decrease of the dev loss that counts as an improvement, because the loss of a memorized set keeps falling
#: a little [nats per word]
_MIN_LOSS_DECREASE = 0.002


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning, equal for all models that are compared.

    Durations are in epochs and in steps, because an epoch of a small set has few steps. The longer one applies.

    Attributes:
        max_epochs, max_steps: maximum duration.
        min_steps: optimizer steps before early stopping.
        patience_epochs, patience_steps: fine-tuning stops after this time without a better F1 or loss on the dev set.
        evaluate_every_steps: minimum steps between evaluations on the dev set, which happen at the ends of epochs.
        batch_size: sentences per step.
        head_lr, body_lr: AdamW learning rates of the classifier and of the decoder.
    """

    max_epochs: int = 20
    max_steps: int = 2000
    min_steps: int = 200
    patience_epochs: int = 3
    patience_steps: int = 150
    evaluate_every_steps: int = 25
    batch_size: int = 16
    head_lr: float = 3e-3
    body_lr: float = 3e-4


@dataclass(frozen=True)
class Splits:
    """Sentences for training, early stopping (dev) and reporting (test)."""

    train: list[TaggedSentence]
    dev: list[TaggedSentence]
    test: list[TaggedSentence]

    def __post_init__(self) -> None:
        """
        Raises:
            DataError: a set has no entities.
        """
        for name, part in (("train", self.train), ("dev", self.dev), ("test", self.test)):
            n_entities = sum(tag.startswith("B-") for sentence in part for tag in sentence.tags)
            if not n_entities:
                raise DataError(
                    f"--ner: the {name} set has {len(part)} sentences and no entity, so F1 is undefined; give "
                    "more sentences, or three files that all have entities"
                )

    @staticmethod
    def of_one(sentences: Sequence[TaggedSentence]) -> "Splits":
        """Split sentences into about 70 % train, 15 % dev and 15 % test.

        The set of a sentence depends only on its words, so duplicates of a sentence are in one set.

        Raises:
            DataError: too few sentences for three sets with entities.
        """
        parts: tuple[list[TaggedSentence], ...] = ([], [], [])
        for sentence in sentences:
            position = keyed_uniform("ner split", *sentence.words)
            parts[(position >= _TRAIN_SHARE) + (position >= _TRAIN_SHARE + _DEV_SHARE)].append(sentence)
        return Splits(*parts)

    @property
    def tags(self) -> list[str]:
        """All tags, sorted."""
        return sorted({tag for part in (self.train, self.dev, self.test) for sentence in part for tag in sentence.tags})


@dataclass(frozen=True)
class FineTuned:
    """Result of one fine-tuning run.

    Attributes:
        f1: entity F1 on the test set, at the evaluation that is best on the dev set.
        steps: number of optimizer steps.
        at_limit: whether fine-tuning stopped at the maximum number of steps while the model was still improving.
    """

    f1: float
    steps: int
    at_limit: bool


def fine_tune(
    decoder: PicoDecoder,
    tokenizer: TextTokenizer,
    splits: Splits,
    mode: Mode,
    seed: int,
    max_length: int,
    settings: FineTuning = FineTuning(),
    on_step: Callable[[float], None] = lambda _: None,
) -> FineTuned:
    """Fine-tune a classifier and return its entity F1 on the test set (seqeval, strict IOB2).

    The reported evaluation has the best F1 on the dev set, and the lowest dev loss among those with equal F1.

    Args:
        decoder: is not modified.
        seed: seed of the initial classifier weights and of the order of the sentences.
        max_length: maximum sentence length [tokens]. Later words are predicted as O.
        on_step: called after every optimizer step with the steps so far as a share of the maximum.
    """
    tags = splits.tags
    train, dev, test = (
        encode_sentences(part, tokenizer, tags, max_length) for part in (splits.train, splits.dev, splits.test)
    )
    generator = torch.Generator().manual_seed(seed)
    classifier = _new_classifier(decoder, len(tags), generator)
    groups = [{"params": list(classifier.parameters()), "lr": settings.head_lr}]
    if mode == "full":
        decoder = copy.deepcopy(decoder).requires_grad_()
        groups.append({"params": list(decoder.parameters()), "lr": settings.body_lr})
    optimizer = torch.optim.AdamW(groups, fused=True)
    states = WordStates(decoder, tokenizer.pad_id, frozen=mode == "head")
    if mode == "head":
        states.compute_once([*train, *dev, *test])

    def score(encoded: Sequence[EncodedSentence], sentences: Sequence[TaggedSentence]) -> tuple[float, float]:
        return _f1_and_loss(states, classifier, encoded, sentences, tags)

    stopping = _EarlyStopping(settings, steps_per_epoch=-(-len(train) // settings.batch_size))
    step = scored_at = 0
    while step < stopping.max_steps:
        for chosen in training_batches(train, settings.batch_size, generator):
            labels = torch.cat([sentence.labels for sentence in chosen]).to(classifier.weight.device)
            loss = F.cross_entropy(classifier(states(chosen)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            on_step(min(1.0, step / stopping.max_steps))
        if step - scored_at < settings.evaluate_every_steps and step < stopping.max_steps:
            continue
        scored_at = step
        if stopping.is_best(step, *score(dev, splits.dev)):
            test_f1 = score(test, splits.test)[0]
        if stopping.should_stop(step):
            break
    return FineTuned(test_f1, step, at_limit=step >= stopping.max_steps and not stopping.is_out_of_patience(step))


def _new_classifier(decoder: PicoDecoder, n_tags: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear classifier on the device of the decoder. The weights do not depend on the device."""
    classifier = nn.Linear(decoder.embedding_proj.embedding_dim, n_tags)
    nn.init.normal_(classifier.weight, std=0.02, generator=generator)
    nn.init.zeros_(classifier.bias)
    return classifier.to(decoder.embedding_proj.weight.device)


class _EarlyStopping:
    """Keeps the best scores on the dev set, and decides when fine-tuning stops."""

    def __init__(self, settings: FineTuning, steps_per_epoch: int) -> None:
        self.max_steps = max(settings.max_epochs * steps_per_epoch, settings.max_steps)
        self._patience = max(settings.patience_epochs * steps_per_epoch, settings.patience_steps)
        self._min_steps = settings.min_steps
        self._best = (-1.0, -math.inf)
        self._lowest_loss, self._improved_at = math.inf, 0

    def is_best(self, step: int, f1: float, loss: float) -> bool:
        """Record the scores of a step. Return whether they are the best so far: by F1, then by loss."""
        if f1 > self._best[0] or loss < self._lowest_loss - _MIN_LOSS_DECREASE:
            self._improved_at, self._lowest_loss = step, min(loss, self._lowest_loss)
        is_best = (f1, -loss) > self._best
        if is_best:
            self._best = (f1, -loss)
        return is_best

    def is_out_of_patience(self, step: int) -> bool:
        """Return whether the last improvement is too long ago."""
        return step - self._improved_at >= self._patience

    def should_stop(self, step: int) -> bool:
        """Return whether to stop before `max_steps`."""
        return step >= self._min_steps and self.is_out_of_patience(step)


@torch.no_grad()
def _f1_and_loss(
    states: WordStates,
    classifier: nn.Module,
    encoded: Sequence[EncodedSentence],
    sentences: Sequence[TaggedSentence],
    tags: Sequence[str],
) -> tuple[float, float]:
    """Return entity F1 and mean loss [nats per word]."""
    best: dict[int, list[int]] = {}
    losses = []
    for chosen in batches_by_length(encoded):
        logits = classifier(states(chosen))
        labels = torch.cat([sentence.labels for sentence in chosen]).to(logits.device)
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        found = logits.argmax(-1).split([len(sentence.labels) for sentence in chosen])
        best |= {id(sentence): tag_ids.tolist() for sentence, tag_ids in zip(chosen, found, strict=True)}
    predicted = [
        [*(tags[tag_id] for tag_id in best[id(item)]), *["O"] * (len(sentence.tags) - len(item.labels))]
        for item, sentence in zip(encoded, sentences, strict=True)
    ]
    expected = [list(sentence.tags) for sentence in sentences]
    f1 = float(f1_score(expected, predicted, mode="strict", scheme=IOB2, zero_division=0))
    return f1, float(torch.cat(losses).mean())


def evaluate_ner(
    model: Model, splits: Splits, n_seeds: int, max_length: int, process: Process
) -> dict[str, list[FineTuned]]:
    """Fine-tune the trained and the untrained weights in both modes with each seed. A collective: ranks share the runs.

    Returns:
        results by seed, by the name of the weights and the mode.
    """
    jobs = [
        (f"{name}, {mode}", theta, mode, seed)
        for name, theta in ((model.initial_name, model.untrained), ("trained", model.theta))
        for mode in MODES
        for seed in range(n_seeds)
    ]
    scores = torch.zeros(len(jobs), 3, dtype=torch.float64, device=process.device)
    local_jobs = range(process.rank, len(jobs), process.world_size)
    last = ""
    with progress("fine-tuning runs for token classification, at most", len(local_jobs)) as work:
        for number, job in enumerate(local_jobs):
            name, theta, mode, seed = jobs[job]

            def on_step(share: float, note: str = f"now {name}, seed {seed}{last}", before: int = number) -> None:
                work.advance(before + share - work.done, note)

            decoder = _decoder_at(model, theta)
            result = fine_tune(decoder, model.tokenizer, splits, mode, seed, max_length, on_step=on_step)
            scores[job] = torch.tensor([result.f1, result.steps, result.at_limit], dtype=torch.float64)
            last = f"; previous: {name}, seed {seed}, F1 {100 * result.f1:.1f} % after {result.steps} steps"
    found: dict[str, list[FineTuned]] = {}
    for (name, *_), (f1, steps, at_limit) in zip(jobs, process.sum_over_ranks(scores).tolist(), strict=True):
        found.setdefault(name, []).append(FineTuned(f1, int(steps), bool(at_limit)))
    return found


def _decoder_at(model: Model, theta: Parameters) -> PicoDecoder:
    """Return a copy of the decoder with the given weights, fp32."""
    decoder = copy.deepcopy(model.network.skeleton.decoder)
    weights = {name.removeprefix(DECODER): part.float() for name, part in theta.items() if name.startswith(DECODER)}
    # assign, because the skeleton has no storage to copy into
    decoder.load_state_dict(weights, assign=True)
    return decoder.requires_grad_(requires_grad=False)


def write_ner(path: Path, found: dict[str, list[FineTuned]], about: dict[str, object]) -> None:
    """Write F1 and steps by seed, with the metadata `about`, as JSON."""
    by_key = {
        key: {name: [getattr(run, key) for run in seeds] for name, seeds in found.items()}
        for key in ("f1", "steps", "at_limit")
    }
    replace_text(path, json.dumps({**about, **by_key}, indent=1) + "\n")
