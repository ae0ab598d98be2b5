"""Fine-tuning for token classification, as pico-maml judges its models on Universal NER."""

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
from pico_ds.evaluation.conll import TaggedSentence
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

#: head: the decoder stays as it is; full: all of it is trained
Mode = Literal["head", "full"]
MODES: tuple[Mode, ...] = ("head", "full")
_TRAIN_SHARE, _DEV_SHARE = 0.7, 0.15
#: by which a better dev loss is less than the best; what is learned by heart gets better for ever [nats per word]
_LEAST_GAIN = 0.002


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned; the same for every model that is compared.

    Epochs of a small set are a few steps, so that lengths are given in both: the longer counts.

    Attributes:
        max_epochs, max_steps: when it ends at the latest.
        min_steps: optimizer steps before it may end.
        patience_epochs, patience_steps: without a better F1 or loss on the dev set before it ends.
        judge_every_steps: least steps between looks at the dev set, which is at the ends of epochs.
        batch_size: sentences of a step.
        head_lr, body_lr: AdamW's learning rates of the classifier and of the decoder.
    """

    max_epochs: int = 20
    max_steps: int = 2000
    min_steps: int = 200
    patience_epochs: int = 3
    patience_steps: int = 150
    judge_every_steps: int = 25
    batch_size: int = 16
    head_lr: float = 3e-3
    body_lr: float = 3e-4


@dataclass(frozen=True)
class Splits:
    """Sentences to train on, to stop by, and to report."""

    train: list[TaggedSentence]
    dev: list[TaggedSentence]
    test: list[TaggedSentence]

    def __post_init__(self) -> None:
        """
        Raises:
            DataError: a part that nothing can be learned from, or judged by.
        """
        for name, part in (("train", self.train), ("dev", self.dev), ("test", self.test)):
            n_entities = sum(tag.startswith("B-") for sentence in part for tag in sentence.tags)
            if not n_entities:
                raise DataError(
                    f"--ner: the {name} set has {len(part)} sentences and no entity, so that F1 says nothing; give "
                    "more sentences, or three files that all have entities"
                )

    @staticmethod
    def of_one(sentences: Sequence[TaggedSentence]) -> "Splits":
        """About 70 % to train on, 15 % to stop by, 15 % to report; a sentence's place depends on its words alone.

        Sentences that stand there twice are thus in one part.

        Raises:
            DataError: too few sentences for three parts with entities.
        """
        parts: tuple[list[TaggedSentence], ...] = ([], [], [])
        for sentence in sentences:
            place = keyed_uniform("ner split", *sentence.words)
            parts[(place >= _TRAIN_SHARE) + (place >= _TRAIN_SHARE + _DEV_SHARE)].append(sentence)
        return Splits(*parts)

    @property
    def tags(self) -> list[str]:
        """All tags, in order."""
        return sorted({tag for part in (self.train, self.dev, self.test) for one in part for tag in one.tags})


@dataclass(frozen=True)
class FineTuned:
    """What came of a fine-tuning.

    Attributes:
        f1: entity F1 on the test set, at the look that is best on the dev set.
        steps: optimizer steps taken.
        at_limit: whether it was ended by the most steps, while it still got better.
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
    """Entity F1 (seqeval, strict IOB2) on the test set, at the look with the best F1, then loss, on the dev set.

    Args:
        decoder: is not changed.
        seed: of the classifier's first weights and of the order of the sentences.
        max_length: longest sentence [tokens]; words beyond it are predicted as O.
        on_step: called after every optimizer step with the share of the most steps that is done.
    """
    device, tags = decoder.embedding_proj.weight.device, splits.tags
    train, dev, test = (
        encode_sentences(part, tokenizer, tags, max_length) for part in (splits.train, splits.dev, splits.test)
    )
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.Linear(decoder.embedding_proj.embedding_dim, len(tags))
    nn.init.normal_(classifier.weight, std=0.02, generator=generator)
    nn.init.zeros_(classifier.bias)
    classifier.to(device)
    groups = [{"params": list(classifier.parameters()), "lr": settings.head_lr}]
    if mode == "full":
        decoder = copy.deepcopy(decoder).requires_grad_()
        groups.append({"params": list(decoder.parameters()), "lr": settings.body_lr})
    optimizer = torch.optim.AdamW(groups, fused=True)
    states = WordStates(decoder, tokenizer.pad_id, frozen=mode == "head")
    if mode == "head":
        states.compute_once([*train, *dev, *test])

    def judge(encoded: Sequence[EncodedSentence], sentences: Sequence[TaggedSentence]) -> tuple[float, float]:
        return _judge(states, classifier, encoded, sentences, tags)

    per_epoch = -(-len(train) // settings.batch_size)
    most = max(settings.max_epochs * per_epoch, settings.max_steps)
    patience = max(settings.patience_epochs * per_epoch, settings.patience_steps)
    best, at_best, least_loss = (-1.0, -math.inf), 0.0, math.inf
    step = judged_at = better_at = 0
    while step < most:
        for chosen in training_batches(train, settings.batch_size, generator):
            labels = torch.cat([one.labels for one in chosen]).to(device)
            loss = F.cross_entropy(classifier(states(chosen)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            on_step(step / most)
        if step - judged_at < settings.judge_every_steps and step < most:
            continue
        judged_at = step
        score, of_dev = judge(dev, splits.dev)
        if score > best[0] or of_dev < least_loss - _LEAST_GAIN:
            better_at, least_loss = step, min(of_dev, least_loss)
        if (score, -of_dev) > best:
            best, at_best = (score, -of_dev), judge(test, splits.test)[0]
        if step >= settings.min_steps and step - better_at >= patience:
            break
    return FineTuned(at_best, step, at_limit=step >= most and step - better_at < patience)


@torch.no_grad()
def _judge(
    states: WordStates,
    classifier: nn.Module,
    encoded: Sequence[EncodedSentence],
    sentences: Sequence[TaggedSentence],
    tags: Sequence[str],
) -> tuple[float, float]:
    """Entity F1, and the mean loss of a word [nats]."""
    best: dict[int, list[int]] = {}
    losses = []
    for chosen in batches_by_length(encoded):
        logits = classifier(states(chosen))
        labels = torch.cat([one.labels for one in chosen]).to(logits.device)
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        found = logits.argmax(-1).split([len(one.labels) for one in chosen])
        best |= {id(one): of_one.tolist() for one, of_one in zip(chosen, found, strict=True)}
    predicted = [
        [*(tags[place] for place in best[id(one)]), *["O"] * (len(sentence.tags) - len(one.labels))]
        for one, sentence in zip(encoded, sentences, strict=True)
    ]
    wanted = [list(sentence.tags) for sentence in sentences]
    f1 = float(f1_score(wanted, predicted, mode="strict", scheme=IOB2, zero_division=0))
    return f1, float(torch.cat(losses).mean())


def evaluate_ner(
    model: Model, splits: Splits, n_seeds: int, max_length: int, process: Process
) -> dict[str, list[FineTuned]]:
    """A trained and an untrained model by seed, head alone and whole. A collective: ranks share the runs."""
    jobs = [
        (f"{name}, {mode}", theta, mode, seed)
        for name, theta in ((model.initial_name, model.untrained), ("trained", model.theta))
        for mode in MODES
        for seed in range(n_seeds)
    ]
    scores = torch.zeros(len(jobs), 3, dtype=torch.float64, device=process.device)
    mine = range(process.rank, len(jobs), process.world_size)
    last = ""
    with progress("fine-tuning runs for token classification, at most", len(mine)) as work:
        for number, place in enumerate(mine):
            name, theta, mode, seed = jobs[place]

            def on_step(share: float, note: str = f"now {name}, seed {seed}{last}", before: int = number) -> None:
                work.advance(before + share - work.done, note)

            decoder = _decoder_at(model, theta)
            one = fine_tune(decoder, model.tokenizer, splits, mode, seed, max_length, on_step=on_step)
            scores[place] = torch.tensor([one.f1, one.steps, one.at_limit], dtype=torch.float64)
            last = f"; before: {name}, seed {seed}, F1 {100 * one.f1:.1f} % after {one.steps} steps"
    found: dict[str, list[FineTuned]] = {}
    for (name, *_), (f1, steps, at_limit) in zip(jobs, process.sum_over_ranks(scores).tolist(), strict=True):
        found.setdefault(name, []).append(FineTuned(f1, int(steps), bool(at_limit)))
    return found


def _decoder_at(model: Model, theta: Parameters) -> PicoDecoder:
    """A decoder of its own with given weights, fp32."""
    decoder = copy.deepcopy(model.network.skeleton.decoder)
    weights = {name.removeprefix(DECODER): part.float() for name, part in theta.items() if name.startswith(DECODER)}
    # the skeleton has no storage
    decoder.load_state_dict(weights, assign=True)
    return decoder.requires_grad_(requires_grad=False)


def write_ner(path: Path, found: dict[str, list[FineTuned]], about: dict[str, object]) -> None:
    """Write F1 and steps by seed, and what else is recorded."""
    of_each = {
        key: {name: [getattr(one, key) for one in seeds] for name, seeds in found.items()}
        for key in ("f1", "steps", "at_limit")
    }
    replace_text(path, json.dumps({**about, **of_each}, indent=1) + "\n")
