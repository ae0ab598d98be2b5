"""How a masked context becomes a sequence of tokens, and where its features are read."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from pico_ds.config import Readout
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.tokenizer import TextTokenizer
from pico_ds.tasks.episode import Contexts
from pico_ds.tasks.index import Index

ROTATED: frozenset[Readout] = frozenset({"fim", "fimpre"})


#: tokens of a class's name that are kept
_NAME_TOKENS = 12


def name_tokens(names: Sequence[str], tokenizer: TextTokenizer) -> Int[Tensor, "n_way word_tokens"]:
    """The tokens of the names of classes, each as if in running text, -1 behind the last."""
    encoded = [tokens[:_NAME_TOKENS] for tokens in tokenizer.encode([f" {name}" for name in names])]
    return torch.tensor([tokens + [-1] * (_NAME_TOKENS - len(tokens)) for tokens in encoded])


def lay_out(
    index: Index,
    occurrences: npt.NDArray[np.int64],
    words: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    readout: Readout,
    context_tokens: int,
    mask_id: int,
    pad_id: int,
    separator_id: int,
) -> Contexts:
    """Mask EVERY occurrence of `words[i]` in the context of `occurrences[i]` and arrange it for the readout.

    Unrotated: `prefix [MASK] suffix` (a separator is put in front when `pre` would have nothing to read).
    Rotated: `suffix <sep> prefix [MASK]`, so that a causal model sees both sides (Bavarian et al. 2022, arXiv
    2207.14255). A word of several tokens becomes one [MASK]. Padding stands at the right.

    Args:
        occurrences, words, labels: `[n_contexts]`.

    Returns:
        contexts of `context_tokens + 1` positions each.
    """
    starts, ends = index.contexts(occurrences)
    # masking removes tokens of words that have several
    width = int((ends - starts).max())
    columns = np.arange(width)
    places = starts[:, None] + columns
    real = places < ends[:, None]
    places = np.minimum(places, len(index.tokens) - 1)

    masked = index.words_at(places) == words[:, None]
    begins = index.begins_word(places)
    tokens = np.where(masked, mask_id, index.tokens[places].astype(np.int64))
    kept = real & ~(masked & ~begins)
    anchor = (index.positions[occurrences] - starts)[:, None]

    # every token gets a sort key; the separator is one more column
    if readout in ROTATED:
        keys = np.where(columns > anchor, columns, 2 * width + columns)
        keys = np.where(columns == anchor, 4 * width, keys)
        separator_key = np.full_like(anchor, width)
        separator_kept = np.ones_like(anchor, dtype=np.bool_)
    else:
        keys = np.broadcast_to(columns, places.shape)
        separator_key = np.full_like(anchor, -1)
        separator_kept = (anchor == 0) if readout == "pre" else np.zeros_like(anchor, dtype=np.bool_)

    tokens = np.concatenate([tokens, np.full_like(anchor, separator_id)], axis=1)
    kept = np.concatenate([kept, separator_kept], axis=1)
    is_anchor = np.concatenate([columns == anchor, np.zeros_like(anchor, dtype=np.bool_)], axis=1)
    keys = np.where(kept, np.concatenate([keys, separator_key], axis=1), 8 * width)
    order = np.argsort(keys, axis=1, kind="stable")
    lengths = kept.sum(axis=1)
    input_ids = np.full((len(occurrences), context_tokens + LAYOUT_EXTRA_TOKENS), pad_id, dtype=np.int64)
    n_columns = min(width + 1, input_ids.shape[1])
    is_real = np.arange(n_columns) < lengths[:, None]
    input_ids[:, :n_columns][is_real] = np.take_along_axis(tokens, order, axis=1)[:, :n_columns][is_real]
    anchor_index = np.take_along_axis(is_anchor, order, axis=1).argmax(axis=1)
    readout_index = {
        "fim": anchor_index,
        "mask": anchor_index,
        "pre": anchor_index - 1,
        "fimpre": anchor_index - 1,
        "last": lengths - 1,
        "mean": lengths - 1,
    }[readout]
    return Contexts(
        input_ids=torch.from_numpy(input_ids),
        lengths=torch.from_numpy(lengths.astype(np.int64)),
        readout_index=torch.from_numpy(readout_index.astype(np.int64)),
        labels=torch.from_numpy(labels.astype(np.int64)),
    )


def lay_out_one(
    tokens: Sequence[int], anchor: int, readout: Readout, context_tokens: int, tokenizer: TextTokenizer
) -> tuple[Int[Tensor, " positions"], int, int]:
    """One context that is masked already, as `lay_out` arranges those of a corpus.

    Args:
        tokens: cut to `context_tokens` around the anchor.
        anchor: place of the [MASK] that features are read at.

    Returns:
        token ids of `context_tokens + 1` positions, the number of real ones, and the readout position.
    """
    start = max(0, min(anchor - context_tokens // 2, len(tokens) - context_tokens))
    tokens, anchor = list(tokens[start : start + context_tokens]), anchor - start
    separator = [tokenizer.end_of_text_id]
    if readout in ROTATED:
        tokens = [*tokens[anchor + 1 :], *separator, *tokens[: anchor + 1]]
        anchor = len(tokens) - 1
    elif readout == "pre" and anchor == 0:
        tokens, anchor = [*separator, *tokens], 1
    place = {"fim": anchor, "mask": anchor, "pre": anchor - 1, "fimpre": anchor - 1}.get(readout, len(tokens) - 1)
    padding = [tokenizer.pad_id] * (context_tokens + LAYOUT_EXTRA_TOKENS - len(tokens))
    return torch.tensor([*tokens, *padding]), len(tokens), place
