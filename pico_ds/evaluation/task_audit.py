"""Checks that tasks can be solved only from the text of their contexts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2
from threadpoolctl import threadpool_limits

from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.evaluation.context_shortcuts import LENGTHS, Integers, lengths_of, outer_tokens, shortcut_hits
from pico_ds.evaluation.few_shot import Estimate
from pico_ds.progress import track
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.index.class_words import find_word_runs
from pico_ds.tasks.index.token_word_boundaries import TokenClasses
from pico_ds.tasks.index.words_in_text import LETTERS, word_name
from pico_ds.tasks.masked_word_tasks import SMLMT
from pico_ds.tasks.sentence_tasks import SentenceTasks
from pico_ds.tasks.task_statistics import visible_texts

#: two contexts are near copies if they differ by at most this number of tokens, and the longer one has more than twice
#: this number
_NEAR_TOKENS = 2
#: a shortcut is a problem if its accuracy is above chance with p < 0.0005 (one-sided), and by this share of the
#: distance from chance to 1. The margin is needed because the length of a context also depends on which words its ends
#: would cut.
_STANDARD_ERRORS, _MARGIN = 3.3, 0.05
#: acceptable share of near copies among the query contexts
_MAX_NEAR_SHARE = 0.05
#: tokens of the corpus whose words are counted
_SAMPLED_TOKENS = 2**20


@dataclass(frozen=True)
class WordBalance:
    """How often each word is a class.

    Attributes:
        n_words: number of words that can be classes.
        least, most: number of tasks of the least and the most frequent class, divided by the mean.
        p_value: of a chi-square test of uniform sampling, without replacement within a task.
    """

    n_words: int
    least: float
    most: float
    p_value: float


@dataclass(frozen=True)
class Audit:
    """Results of an audit.

    Attributes:
        n_tasks: number of audited tasks.
        chance: mean accuracy of guessing.
        accuracies: query accuracy of every task, of a logistic regression on one shortcut; by shortcut.
        above_chance: shortcuts in `LENGTHS` whose accuracy is above chance.
        n_contexts, n_query: number of all contexts, and of query contexts.
        exact_copies: contexts that equal an earlier context of their task.
        near_copies: query contexts that differ from a support context of their class by at most two tokens.
        visible: number of contexts in which a class word of their task is visible, by word.
        unbalanced: tasks in which the classes have different numbers of contexts.
        balance: of the class words; None for sentences.
        unknown_share: share of word-like token runs in the corpus that masking cannot find; None for sentences.
        word_share: share of the tokens of the corpus that are in words that masking can find; None for sentences.
    """

    n_tasks: int
    chance: float
    accuracies: dict[str, list[float]]
    above_chance: tuple[str, ...]
    n_contexts: int
    n_query: int
    exact_copies: int
    near_copies: int
    visible: Counter[str]
    unbalanced: int
    balance: WordBalance | None = None
    unknown_share: float | None = None
    word_share: float | None = None

    @property
    def problems(self) -> list[str]:
        """One message for each problem found."""
        found = [
            f"the {name} of a context reveals its class: a classifier that sees nothing else has an accuracy of "
            f"{Estimate.of(self.accuracies[name]).percent()} %, chance is {100 * self.chance:.1f} %"
            for name in self.above_chance
        ]
        if self.exact_copies:
            found.append(f"{self.exact_copies:,} of {self.n_contexts:,} contexts equal another context of their task")
        if self.near_copies > _MAX_NEAR_SHARE * self.n_query:
            found.append(
                f"{self.near_copies:,} of {self.n_query:,} query contexts differ from a support context of their class "
                f"by at most {_NEAR_TOKENS} tokens; remove repeated text from the corpus"
            )
        if self.visible:
            words = ", ".join(repr(word) for word, _ in self.visible.most_common(5))
            found.append(
                f"{self.visible.total():,} of {self.n_contexts:,} contexts show a class word unmasked ({words})"
            )
        if self.unbalanced:
            found.append(
                f"{self.unbalanced:,} of {self.n_tasks:,} tasks have more contexts of one class than of another"
            )
        return found


# fits of this size are slower with several threads
@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
def audit(
    tasks: SMLMT | SentenceTasks,
    tokenizer: TextTokenizer,
    n_tasks: int,
    step: int = 0,
    check_lengths: bool = True,
) -> Audit:
    """Audit tasks 0 to n_tasks - 1 of a step.

    Args:
        check_lengths: whether a length that reveals the class is a problem. For whole sentences it is not.

    Raises:
        TaskError: the tasks cannot be sampled.
    """
    accuracies: dict[str, list[float]] = {}
    excess: dict[str, dict[str, list[float]]] = {name: {} for name in LENGTHS}
    chances, words = [], Counter[str]()
    n_contexts, n_query, exact, near, unbalanced, visible = 0, 0, 0, 0, 0, Counter[str]()
    for index in track(range(n_tasks), "auditing tasks", n_tasks):
        episode = tasks.sample(step, index)
        for name, (support, query) in _shortcuts(tasks, tokenizer, episode, step, index).items():
            hits = shortcut_hits(support, query, episode)
            accuracies.setdefault(name, []).append(float(hits.mean()))
            for label, word in enumerate(episode.words if name in LENGTHS else ()):
                of_word = hits[episode.query.labels.numpy() == label]
                excess[name].setdefault(word, []).extend(of_word - 1 / episode.n_way)
        chances.append(1 / episode.n_way)
        words.update(episode.words)
        both = episode.support.followed_by(episode.query)
        n_contexts += len(both.labels)
        n_query += len(episode.query.labels)
        exact += len(both.labels) - len({row.tobytes() for row in both.input_ids.numpy()})
        near += _near_copies(episode, tokenizer)
        unbalanced += any(len(set(np.bincount(part.labels))) > 1 for part in (episode.support, episode.query))
        visible += _visible_words(both, episode.words, tokenizer)
    chance = float(np.mean(chances))
    above = [name for name in LENGTHS if check_lengths and _is_above_chance([*excess[name].values()], chance)]
    word_shares = _words_of_text(tasks, tokenizer) if isinstance(tasks, SMLMT) else {}
    return Audit(
        n_tasks,
        chance,
        accuracies,
        tuple(above),
        n_contexts,
        n_query,
        exact,
        near,
        visible,
        unbalanced,
        balance=_balance(words, len(tasks.words), n_tasks) if isinstance(tasks, SMLMT) else None,
        **word_shares,
    )


def _shortcuts(
    tasks: SMLMT | SentenceTasks, tokenizer: TextTokenizer, episode: Episode, step: int, index: int
) -> Mapping[str, tuple[Integers, Integers]]:
    """Return the values of each shortcut for the support and the query contexts, `[contexts, 1]`, by shortcut name."""
    parts = [{**lengths_of(part, tokenizer), **outer_tokens(part)} for part in (episode.support, episode.query)]
    if isinstance(tasks, SMLMT):
        k_shot = len(episode.support.labels) // episode.n_way
        chosen = tasks.choose(step, index)[1]
        for part, occurrences in zip(parts, (chosen[:, :k_shot], chosen[:, k_shot:]), strict=True):
            positions = tasks.index.positions[occurrences.ravel()].astype(np.int64)
            ends = np.concatenate([[0], tasks.index.document_ends])
            part["document"] = np.searchsorted(ends, positions, side="right")
            first, end = ends[part["document"] - 1], ends[part["document"]]
            part["tenth of the document"] = 10 * (positions - first) // (end - first)
    return {name: (parts[0][name][:, None], parts[1][name][:, None]) for name in parts[0]}


def _is_above_chance(excess: list[list[float]], chance: float) -> bool:
    """Return whether the accuracy of a shortcut is above chance.

    Args:
        excess: correctness (0 or 1) minus chance of each query context, one list per class word. Contexts of a word
            recur in many tasks, so words are independent samples and tasks are not.
    """
    by_word = np.array([np.mean(of_word) for of_word in excess])
    error = by_word.std(ddof=1) / np.sqrt(len(by_word))
    return bool(by_word.mean() > max(_MARGIN * (1 - chance), _STANDARD_ERRORS * error))


def _near_copies(episode: Episode, tokenizer: TextTokenizer) -> int:
    """Return the number of query contexts that nearly copy a support context of their class, in any token order."""
    found = 0
    for label in range(episode.n_way):
        ids = [part.input_ids[part.labels == label].numpy() for part in (episode.support, episode.query)]
        tokens, token_numbers = np.unique(np.concatenate(ids), return_inverse=True)
        rows = token_numbers.reshape(-1, ids[0].shape[1])
        counts = (rows[:, :, None] == np.arange(len(tokens))).sum(axis=1)[:, tokens != tokenizer.pad_id]
        support, query = counts[: len(ids[0])], counts[len(ids[0]) :]
        shared = np.minimum(support[None], query[:, None]).sum(axis=2)
        longer = np.maximum(support.sum(axis=1)[None], query.sum(axis=1)[:, None])
        found += int(((longer - shared <= _NEAR_TOKENS) & (longer > 2 * _NEAR_TOKENS)).any(axis=1).sum())
    return found


def _visible_words(contexts: Contexts, words: tuple[str, ...], tokenizer: TextTokenizer) -> Counter[str]:
    """Return the number of contexts in which each class word is visible."""
    found = Counter[str]()
    for parts in visible_texts(contexts, tokenizer):
        visible = {word_name(run) for part in parts for run in LETTERS.findall(part)}
        found.update(word for word in words if word in visible)
    return found


def _balance(counts: Counter[str], n_words: int, n_tasks: int) -> WordBalance:
    n_tasks_of_word = np.array([*counts.values(), *[0] * (n_words - len(counts))])
    expected = n_tasks_of_word.sum() / n_words
    # the classes of a task are distinct, which reduces the variance of the counts
    per_task = n_tasks_of_word.sum() / n_tasks
    statistic = ((n_tasks_of_word - expected) ** 2 / expected).sum() * (n_words - 1) / max(n_words - per_task, 1e-9)
    return WordBalance(
        n_words,
        float(n_tasks_of_word.min() / expected),
        float(n_tasks_of_word.max() / expected),
        float(chi2.sf(statistic, n_words - 1)) if n_words > per_task else 1.0,
    )


def _words_of_text(tasks: SMLMT, tokenizer: TextTokenizer) -> dict[str, float]:
    tokens = tasks.index.tokens[:_SAMPLED_TOKENS]
    runs = find_word_runs(tokens, TokenClasses.of(tokenizer))
    is_known = tasks.index.words_at(runs.starts) >= 0
    in_words = (runs.ends - runs.starts)[is_known].sum()
    return {"unknown_share": float(1 - is_known.mean()), "word_share": float(in_words / len(tokens))}
