"""What a few-shot accuracy is compared with: classifiers of frozen features, and of words without any model."""

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

#: a word, or a sign that is none
_TOKENS = r"\w+|[^\w\s]"
Array = npt.NDArray[Any]
#: accuracies of a task by the name of the classifier
Accuracies = dict[str, float]


@torch.no_grad()
def frozen_feature_accuracies(
    network: FunctionalModel, theta: Parameters, episode: Episode, readout: Readout
) -> Accuracies:
    """Nearest prototype and logistic regression on the features of a model as it is."""
    support, query = (
        network.features(theta, part, readout).double().cpu().numpy() for part in (episode.support, episode.query)
    )
    return _accuracies(support, query, episode)


def tfidf_accuracies(episode: Episode, tokenizer: TextTokenizer) -> Accuracies:
    """The same on TF-IDF vectors of the words around the mask, whose frequencies are those of the support set."""
    support, query = (plain_texts(part, tokenizer) for part in (episode.support, episode.query))
    vectorizer = TfidfVectorizer(token_pattern=_TOKENS)
    try:
        known = vectorizer.fit_transform(support)
    except ValueError:
        # support texts without a single token: nothing to tell classes apart by
        chance = 1 / episode.n_way
        return {"nearest prototype": chance, "logistic regression": chance}
    return _accuracies(known.toarray(), vectorizer.transform(query).toarray(), episode)


def _accuracies(support: Array, query: Array, episode: Episode) -> Accuracies:
    known, wanted = episode.support.labels.cpu().numpy(), episode.query.labels.cpu().numpy()
    prototypes = np.stack([support[known == label].mean(0) for label in range(episode.n_way)])
    # squared distances, up to what all classes of a context share
    distances = (prototypes**2).sum(-1) - 2 * query @ prototypes.T
    with warnings.catch_warnings():
        # the fit is as good as it will get
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = LogisticRegression(max_iter=1000).fit(support, known).predict(query)
    return {
        "nearest prototype": float(np.mean(distances.argmin(-1) == wanted)),
        "logistic regression": float(np.mean(predicted == wanted)),
    }
