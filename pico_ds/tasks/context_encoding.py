"""Encodes masked contexts as token sequences, and finds the readout position of each context."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from pico_ds.config import Readout
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.tasks.episode import Contexts
from pico_ds.tasks.index.word_index_protocols import Index

#: readouts that rotate a context: the part after the masked word comes first
ROTATED: frozenset[Readout] = frozenset({"fim", "fimpre"})
#: a class name is cut to this number of tokens
_NAME_TOKENS = 12
_Integers = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


def name_tokens(names: Sequence[str], tokenizer: TextTokenizer) -> Int[Tensor, "n_way word_tokens"]:
    """Return the tokens of class names, as in running text. Shorter names are padded with -1."""
    encoded = [tokens[:_NAME_TOKENS] for tokens in tokenizer.encode([f" {name}" for name in names])]
    return torch.tensor([tokens + [-1] * (_NAME_TOKENS - len(tokens)) for tokens in encoded])


@dataclass(frozen=True)
class ContextEncoder:
    """Masks words in contexts of a corpus, and encodes the contexts for one readout.

    Unrotated: `prefix [MASK] suffix`. For the readout `pre`, a separator is put in front of a context that begins with
    the [MASK], because `pre` reads at the position before it.
    Rotated: `suffix <sep> prefix [MASK]`, so that a causal model sees both sides (Bavarian et al. 2022, arXiv
    2207.14255).
    A word of several tokens becomes one [MASK]. Padding is on the right.

    Attributes:
        context_tokens: length of a context in the corpus. An encoded context is one position longer.
    """

    readout: Readout
    context_tokens: int
    mask_id: int
    pad_id: int
    separator_id: int

    def encode(self, index: Index, occurrences: _Integers, words: _Integers, labels: _Integers) -> Contexts:
        """Mask every occurrence of `words[i]` in the context of `occurrences[i]`, and encode the context.

        Args:
            occurrences, words, labels: `[n_contexts]`.
        """
        starts, ends = index.contexts(occurrences)
        anchor = (index.positions[occurrences] - starts)[:, None]
        tokens, is_kept = self._mask(index, starts, ends, words)
        keys, separator_key, has_separator = self._sort_keys(anchor, tokens.shape[1])

        # the separator is an extra last column
        tokens = np.concatenate([tokens, np.full_like(anchor, self.separator_id)], axis=1)
        is_kept = np.concatenate([is_kept, has_separator], axis=1)
        past_all_keys = 8 * tokens.shape[1]
        keys = np.where(is_kept, np.concatenate([keys, separator_key], axis=1), past_all_keys)
        order = np.argsort(keys, axis=1, kind="stable")
        lengths = is_kept.sum(axis=1)

        input_ids = np.full((len(occurrences), self.context_tokens + LAYOUT_EXTRA_TOKENS), self.pad_id, dtype=np.int64)
        n_columns = min(tokens.shape[1], input_ids.shape[1])
        is_token = np.arange(n_columns) < lengths[:, None]
        input_ids[:, :n_columns][is_token] = np.take_along_axis(tokens, order, axis=1)[:, :n_columns][is_token]
        anchor_index = (order == anchor).argmax(axis=1)
        return Contexts(
            input_ids=torch.from_numpy(input_ids),
            lengths=torch.from_numpy(lengths.astype(np.int64)),
            readout_index=torch.from_numpy(_readout_index(self.readout, anchor_index, lengths).astype(np.int64)),
            labels=torch.from_numpy(labels.astype(np.int64)),
        )

    def _mask(self, index: Index, starts: _Integers, ends: _Integers, words: _Integers) -> tuple[_Integers, _Flags]:
        """Return the tokens of the contexts, `[n_contexts, longest]`, and a flag for each: whether it is kept.

        Tokens past the end of a context are dropped, as are all tokens of a masked word except its first.
        """
        places = starts[:, None] + np.arange(int((ends - starts).max()))
        is_inside = places < ends[:, None]
        places = np.minimum(places, len(index.tokens) - 1)
        is_masked = index.words_at(places) == words[:, None]
        tokens = np.where(is_masked, self.mask_id, index.tokens[places].astype(np.int64))
        return tokens, is_inside & ~(is_masked & ~index.begins_word(places))

    def _sort_keys(self, anchor: _Integers, width: int) -> tuple[_Integers, _Integers, _Flags]:
        """Return the sort keys of the tokens and of the separator, and a flag: whether a context has a separator.

        Args:
            anchor: column of the masked occurrence, `[n_contexts, 1]`.
            width: number of columns.
        """
        columns = np.arange(width)
        if self.readout in ROTATED:
            keys = np.where(columns > anchor, columns, 2 * width + columns)
            keys = np.where(columns == anchor, 4 * width, keys)
            return keys, np.full_like(anchor, width), np.ones_like(anchor, dtype=np.bool_)
        keys = np.broadcast_to(columns, (len(anchor), width))
        has_separator = (anchor == 0) if self.readout == "pre" else np.zeros_like(anchor, dtype=np.bool_)
        return keys, np.full_like(anchor, -1), has_separator


def encode_context(
    tokens: Sequence[int], anchor: int, readout: Readout, context_tokens: int, tokenizer: TextTokenizer
) -> tuple[Int[Tensor, " positions"], int, int]:
    """Encode one context that is already masked, in the format of `ContextEncoder`.

    Args:
        tokens: token ids of any length; they are cut to `context_tokens` around the anchor.
        anchor: index of the [MASK] that is read.

    Returns:
        `context_tokens + 1` token ids, the number of tokens without padding, and the readout position.
    """
    start = max(0, min(anchor - context_tokens // 2, len(tokens) - context_tokens))
    tokens, anchor = list(tokens[start : start + context_tokens]), anchor - start
    separator = [tokenizer.end_of_text_id]
    if readout in ROTATED:
        tokens = [*tokens[anchor + 1 :], *separator, *tokens[: anchor + 1]]
        anchor = len(tokens) - 1
    elif readout == "pre" and anchor == 0:
        tokens, anchor = [*separator, *tokens], 1
    place = _readout_index(readout, np.array([anchor]), np.array([len(tokens)]))
    padding = [tokenizer.pad_id] * (context_tokens + LAYOUT_EXTRA_TOKENS - len(tokens))
    return torch.tensor([*tokens, *padding]), len(tokens), int(place[0])


def _readout_index(readout: Readout, anchor: _Integers, lengths: _Integers) -> _Integers:
    """Return the position at which each context is read; for `last` and `mean` it is the last token."""
    if readout in ("fim", "mask"):
        return anchor
    if readout in ("pre", "fimpre"):
        return anchor - 1
    return lengths - 1
