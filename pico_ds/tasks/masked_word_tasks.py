"""Samples Subset Masked Language Modeling Tasks (Bansal et al. 2020, arXiv 2009.08445)."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pico_ds.config import Readout, SmlmtConfig
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.keyed_random import digest64, keyed_rng
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.errors import TaskError
from pico_ds.tasks.class_sampling import ClassSampler
from pico_ds.tasks.context_encoding import ContextEncoder, name_tokens
from pico_ds.tasks.context_sampling import ContextSampler, Documents
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.index.class_words import WordSplit
from pico_ds.tasks.index.word_index_protocols import Index, Vocabulary
from pico_ds.tasks.sentence_files import parse_sentences
from pico_ds.tasks.sentence_tasks import SentenceTasks
from pico_ds.tasks.task_shape import TaskShapes

#: Increase this when the same settings give different tasks. A run with another version does not resume by default, and
#: its results are not paired with others.
#: 2: contexts are cut after masking, and no two contexts of a task are equal
#: 3: words are those of Unicode word segmentation, independent of the tokenizer
#: 4: if query contexts come from the same (or different) documents, words are sampled more uniformly; contexts of pools
#: do not spell a word of their task with several tokens
TASKS_VERSION = 4
#: samples of n_way words that are tried before a task fails
_MAX_DRAWS: dict[Documents, int] = {"any": 1000, "same": 200, "different": 200}

Integers = npt.NDArray[np.int64]


class SMLMT:
    """Tasks over the words of one split in the documents of one index.

    A task has n_way distinct words. Each word has k_shot + q_query contexts that contain it and none of the other
    words. No two contexts of a task overlap or are equal after masking. Labels are a random permutation.
    """

    def __init__(
        self,
        index: Index,
        lexicon: Vocabulary,
        tokenizer: TextTokenizer,
        config: SmlmtConfig,
        split: WordSplit,
        split_seed: int,
        seed: int,
        readout: Readout | None = None,
        documents: Documents = "any",
    ) -> None:
        """
        Args:
            split_seed: seed of the assignment of words to splits.
            seed: seed of the tasks.
            readout: overrides `config.readout`, which changes the encoding of the tasks but not their contexts.
            documents: which documents the query contexts come from.

        Raises:
            TaskError: there are fewer than `n_way` words with enough contexts.
        """
        self.index, self.lexicon, self.config = index, lexicon, config
        self.readout: Readout = readout or config.readout
        self._encoder = ContextEncoder(
            self.readout,
            config.context_tokens,
            mask_id=tokenizer.mask_id,
            pad_id=tokenizer.pad_id,
            separator_id=tokenizer.end_of_text_id,
        )
        self._key = ("smlmt", split, seed)
        words = lexicon.class_words(split, config, split_seed)
        self.shapes = TaskShapes(config, seed)
        largest = self.shapes.largest
        self.words: Integers = words[index.disjoint_contexts(words, at_least=largest.per_class)]
        self._context_sampler = ContextSampler(index, documents)
        if documents != "any":
            self.words = self.words[
                self._context_sampler.has_enough_contexts(self.words, largest, keyed_rng("supplies", *self._key))
            ]
        if len(self.words) < largest.n_way:
            raise TaskError(
                f"smlmt.n_way: got {largest.n_way}, but only {len(self.words)} {split} words have smlmt.k_shot + "
                f"smlmt.q_query = {largest.per_class} contexts ({len(words)} {split} words have a frequency in "
                f"[{config.min_word_freq}, {config.max_word_freq}]); lower n_way, k_shot, q_query or min_word_freq, "
                "raise the word fraction of the split, or use more text"
                + (
                    ""
                    if len(self.words)
                    else f"; a class word has at most {config.context_tokens // 2} tokens, half of smlmt.context_tokens"
                )
            )
        self._max_draws = _MAX_DRAWS[documents]
        self._class_sampler = ClassSampler(self.words, config, index)
        #: tokens of every class word, in the order of `words`
        self._word_tokens = name_tokens([lexicon.words[word] for word in self.words], tokenizer)

    @staticmethod
    def from_sentences(
        sentences: Sequence[Mapping[str, str] | tuple[str, str]],
        tokenizer: TextTokenizer,
        config: SmlmtConfig,
        seed: int = 0,
    ) -> SentenceTasks:
        """Return tasks over your own sentences.

        Args:
            sentences: all `{"text": ..., "word": ...}` or `(text, word)`, to classify masked words; or all
                `{"text": ..., "label": ...}`, to classify whole sentences.
            config: shape and encoding of the tasks.
            seed: seed of the tasks.

        Raises:
            TaskError: a sentence is invalid, or there are too few sentences.
        """
        records = [
            sentence if isinstance(sentence, Mapping) else {"text": sentence[0], "word": sentence[1]}
            for sentence in sentences
        ]
        found = parse_sentences((f"sentence {number}", record) for number, record in enumerate(records, start=1))
        return SentenceTasks(found, tokenizer, config, seed)

    @property
    def sequence_length(self) -> int:
        """Length of every context, including padding [tokens]."""
        return self.config.context_tokens + LAYOUT_EXTRA_TOKENS

    def sample(self, step: int, index: int) -> Episode:
        """Return task `index` of outer step `step`, a pure function of (seed, step, index).

        Raises:
            TaskError: no sample of words had enough contexts that contain only one of the words.
        """
        words, chosen = self.choose(step, index)
        # words are sampled in random order, so the labels 0..n_way-1 are already a random permutation
        k_shot = self.shapes.at(step, index).k_shot
        return Episode(
            support=self._contexts(words, chosen[:, :k_shot]),
            query=self._contexts(words, chosen[:, k_shot:]),
            words=tuple(self.lexicon.words[word] for word in words),
            word_tokens=self._word_tokens[torch.from_numpy(np.searchsorted(self.words, words))],
            keys=(digest64("device", *self._key, step, index),),
        )

    def choose(self, step: int, index: int) -> tuple[Integers, Integers]:
        """Return the words `[n_way]` of a task and their occurrences `[n_way, k_shot + q_query]`, support first.

        Raises:
            TaskError: no sample of words had enough contexts that contain only one of the words.
        """
        rng, shape = keyed_rng(*self._key, step, index), self.shapes.at(step, index)
        for _ in range(self._max_draws):
            words = self._class_sampler.draw(rng, shape.n_way, self.shapes.progress(step))
            if (chosen := self._context_sampler.choose(words, shape, rng)) is not None:
                return words, chosen
        raise TaskError(
            f"{self._max_draws} random samples found no {shape.n_way} words with {shape.per_class} contexts each that "
            "contain none of the other words; lower smlmt.n_way, k_shot, q_query, max_word_freq or context_tokens, or "
            "use more text"
        )

    def _contexts(self, words: Integers, chosen: Integers) -> Contexts:
        per_class = chosen.shape[1]
        return self._encoder.encode(
            self.index,
            occurrences=chosen.ravel(),
            words=np.repeat(words, per_class),
            labels=np.repeat(np.arange(len(words)), per_class),
        )
