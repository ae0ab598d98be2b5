"""Measures whether the shape of a context reveals its class. In a correctly built task it does not.

The features ignore the text of a context, except for its first and last token.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.tasks.episode import Contexts, Episode

Integers = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

#: properties of a context that must not depend on its class
LENGTHS = ("length", "readout position", "separator position", "number of masks")


def lengths_of(contexts: Contexts, tokenizer: TextTokenizer) -> dict[str, Integers]:
    """Return the `LENGTHS` properties of each context, `[contexts]`. The separator position is -1 if there is none."""
    ids, lengths = contexts.input_ids.numpy(), contexts.lengths.numpy()
    is_real = np.arange(ids.shape[1]) < lengths[:, None]
    is_separator = is_real & (ids == tokenizer.end_of_text_id)
    return {
        "length": lengths,
        "readout position": contexts.readout_index.numpy(),
        "separator position": np.where(is_separator.any(axis=1), is_separator.argmax(axis=1), -1),
        "number of masks": (is_real & (ids == tokenizer.mask_id)).sum(axis=1),
    }


def outer_tokens(contexts: Contexts) -> dict[str, Integers]:
    """Return the first and the last token of each context, `[contexts]`."""
    ids, lengths = contexts.input_ids.numpy(), contexts.lengths.numpy()
    return {"first token": ids[:, 0], "last token": ids[np.arange(len(ids)), lengths - 1]}


def lengths_only_accuracy(episode: Episode, tokenizer: TextTokenizer) -> float:
    """Return the query accuracy of a logistic regression on all properties in `LENGTHS`."""
    support, query = (
        np.stack([*lengths_of(part, tokenizer).values()], axis=1) for part in (episode.support, episode.query)
    )
    return float(shortcut_hits(support, query, episode).mean())


def shortcut_hits(support: Integers, query: Integers, episode: Episode) -> npt.NDArray[np.float64]:
    """Return whether a logistic regression on properties of the contexts classifies each query context correctly.

    The regression sees each property as a standardized number, and one-hot encoded over its support values.

    Args:
        support, query: `[contexts, properties]`

    Returns:
        1 or 0 for each query context, `[query contexts]`; chance if all support contexts have equal properties.
    """
    support_labels, query_labels = episode.support.labels.numpy(), episode.query.labels.numpy()
    if (support == support[0]).all():
        return np.full(len(query_labels), 1 / episode.n_way)
    scale = np.maximum(support.std(axis=0), 1e-9)
    encoded = [
        np.concatenate(
            [
                (part - support.mean(axis=0)) / scale,
                *(_one_hot(part[:, i], support[:, i]) for i in range(part.shape[1])),
            ],
            axis=1,
        )
        for part in (support, query)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = LogisticRegression(solver="newton-cg").fit(encoded[0], support_labels).predict(encoded[1])
    return (predicted == query_labels).astype(np.float64)


def _one_hot(values: Integers, support_values: Integers) -> Array:
    return (values[:, None] == np.unique(support_values)).astype(np.float64)
