"""Subset Masked Language Modeling Tasks (Bansal et al. 2020, arXiv 2009.08445): sampling."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pico_ds.config import Readout, SmlmtConfig
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.keyed_random import digest64, keyed_rng
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.errors import TaskError
from pico_ds.tasks.class_sampling import ClassChoice
from pico_ds.tasks.context_encoding import ContextEncoder, name_tokens
from pico_ds.tasks.context_sampling import ContextChoice, Documents
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.index.class_words import WordSplit
from pico_ds.tasks.index.text_index import Index, Vocabulary
from pico_ds.tasks.sentence_files import parse_sentences
from pico_ds.tasks.sentence_tasks import SentenceTasks
from pico_ds.tasks.task_shape import TaskShapes

#: raise when equal settings give other tasks: a run does not resume with them unasked, and results are not paired.
#: 2: contexts are cut after masking, and no two contexts of a task are equal
#: 3: words are those of Unicode's word segmentation, whatever the tokenizer
#: 4: words of tasks with query contexts from the same (or other) documents are sampled more uniformly; contexts of
#: pools do not spell a word of their task with several tokens
TASKS_VERSION = 4
#: draws of n_way words before a task is given up
_MAX_DRAWS: dict[Documents, int] = {"any": 1000, "same": 200, "different": 200}

Integers = npt.NDArray[np.int64]


class SMLMT:
    """Tasks over the words of one split in the documents of one index.

    A task has n_way distinct words; each has k_shot + q_query contexts that contain it and none of the other words;
    no two contexts of a task overlap, or are equal once their words are masked; labels are a random permutation.
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
            split_seed: key of the assignment of words to splits.
            seed: key of the tasks.
            readout: overrides `config.readout`; the tasks stay the same, only their layout changes.
            documents: that the query contexts come from.

        Raises:
            TaskError: fewer usable words than `n_way`.
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
        self._contexts_of = ContextChoice(index, documents)
        if documents != "any":
            self.words = self.words[self._contexts_of.supplies(self.words, largest, keyed_rng("supplies", *self._key))]
        if len(self.words) < largest.n_way:
            raise TaskError(
                f"smlmt.n_way: got {largest.n_way}, but only {len(self.words)} {split} words have smlmt.k_shot + "
                f"smlmt.q_query = {largest.per_class} contexts here ({len(words)} {split} words have a frequency in "
                f"[{config.min_word_freq}, {config.max_word_freq}]); lower n_way, k_shot, q_query or min_word_freq, "
                "raise the split's word fraction, or give more text"
                + (
                    ""
                    if len(self.words)
                    else f"; a class word has at most {config.context_tokens // 2} tokens, half of smlmt.context_tokens"
                )
            )
        self._max_draws = _MAX_DRAWS[documents]
        self._choice = ClassChoice(self.words, config, index)
        #: of every class word, in the order of `words`
        self._word_tokens = name_tokens([lexicon.words[word] for word in self.words], tokenizer)

    @staticmethod
    def from_sentences(
        sentences: Sequence[Mapping[str, str] | tuple[str, str]],
        tokenizer: TextTokenizer,
        config: SmlmtConfig,
        seed: int = 0,
    ) -> SentenceTasks:
        """Tasks over sentences of your own.

        Args:
            sentences: `{"text": ..., "word": ...}` or `(text, word)`, to tell masked words apart; or all of them
                `{"text": ..., "label": ...}`, to tell labels of whole sentences apart.
            config: shape and layout of the tasks.
            seed: key of the tasks.

        Raises:
            TaskError: a sentence that is not as it should be, or too few of them.
        """
        records = [one if isinstance(one, Mapping) else {"text": one[0], "word": one[1]} for one in sentences]
        found = parse_sentences((f"sentence {number}", record) for number, record in enumerate(records, start=1))
        return SentenceTasks(found, tokenizer, config, seed)

    @property
    def sequence_length(self) -> int:
        """Positions of every context, padding included [tokens]."""
        return self.config.context_tokens + LAYOUT_EXTRA_TOKENS

    def sample(self, step: int, index: int) -> Episode:
        """Task `index` of outer step `step`; a pure function of (seed, step, index).

        Raises:
            TaskError: no draw of words gave enough contexts that contain one of them alone.
        """
        words, chosen = self.choose(step, index)
        # words are drawn in random order, so the labels 0..n_way-1 are a random permutation already
        k_shot = self.shapes.at(step, index).k_shot
        return Episode(
            support=self._contexts(words, chosen[:, :k_shot]),
            query=self._contexts(words, chosen[:, k_shot:]),
            words=tuple(self.lexicon.words[word] for word in words),
            word_tokens=self._word_tokens[torch.from_numpy(np.searchsorted(self.words, words))],
            keys=(digest64("device", *self._key, step, index),),
        )

    def choose(self, step: int, index: int) -> tuple[Integers, Integers]:
        """The words `[n_way]` of a task and their occurrences `[n_way, k_shot + q_query]` in the index, support first.

        Raises:
            TaskError: no draw of words gave enough contexts that contain one of them alone.
        """
        rng, shape = keyed_rng(*self._key, step, index), self.shapes.at(step, index)
        for _ in range(self._max_draws):
            words = self._choice.draw(rng, shape.n_way, self.shapes.progress(step))
            if (chosen := self._contexts_of.choose(words, shape, rng)) is not None:
                return words, chosen
        raise TaskError(
            f"no {shape.n_way} words with {shape.per_class} contexts free of each other were found in "
            f"{self._max_draws} draws; lower smlmt.n_way, k_shot, q_query, max_word_freq or context_tokens, or give "
            "more text"
        )

    def _contexts(self, words: Integers, chosen: Integers) -> Contexts:
        per_class = chosen.shape[1]
        return self._encoder.encode(
            self.index,
            occurrences=chosen.ravel(),
            words=np.repeat(words, per_class),
            labels=np.repeat(np.arange(len(words)), per_class),
        )
