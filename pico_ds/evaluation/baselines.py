"""Few-shot baselines: classifiers of frozen features, and of TF-IDF vectors without a model."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from pico_ds.config import Readout
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.tasks.episode import Episode
from pico_ds.tasks.task_statistics import plain_texts

#: a word or a punctuation mark
_TOKENS = r"\w+|[^\w\s]"
Array = npt.NDArray[Any]
#: accuracies of one task, by classifier name
Accuracies = dict[str, float]


@torch.no_grad()
def frozen_feature_accuracies(
    network: FunctionalModel, theta: Parameters, episode: Episode, readout: Readout
) -> Accuracies:
    """Return the query accuracies of nearest prototype and logistic regression on frozen features of the model."""
    support, query = (
        network.features(theta, part, readout).double().cpu().numpy() for part in (episode.support, episode.query)
    )
    return _accuracies(support, query, episode)


def tfidf_accuracies(episode: Episode, tokenizer: TextTokenizer) -> Accuracies:
    """Return the query accuracies of nearest prototype and logistic regression on TF-IDF vectors of the contexts.

    The vectorizer is fitted on the support set.
    """
    support, query = (plain_texts(part, tokenizer) for part in (episode.support, episode.query))
    vectorizer = TfidfVectorizer(token_pattern=_TOKENS)
    try:
        support_vectors = vectorizer.fit_transform(support)
    except ValueError:
        # no support text has a token, so nothing distinguishes the classes
        chance = 1 / episode.n_way
        return {"nearest prototype": chance, "logistic regression": chance}
    return _accuracies(support_vectors.toarray(), vectorizer.transform(query).toarray(), episode)


def _accuracies(support: Array, query: Array, episode: Episode) -> Accuracies:
    support_labels, query_labels = episode.support.labels.cpu().numpy(), episode.query.labels.cpu().numpy()
    prototypes = np.stack([support[support_labels == label].mean(0) for label in range(episode.n_way)])
    # squared distances without the norm of the query, which is equal for all classes
    distances = (prototypes**2).sum(-1) - 2 * query @ prototypes.T
    with warnings.catch_warnings():
        # a fit that stops at max_iter is good enough for a baseline
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = LogisticRegression(max_iter=1000).fit(support, support_labels).predict(query)
    return {
        "nearest prototype": float(np.mean(distances.argmin(-1) == query_labels)),
        "logistic regression": float(np.mean(predicted == query_labels)),
    }
