"""Builds the tasks of a run from its configuration and corpus."""

import logging
from functools import cached_property
from pathlib import Path

from pico_ds.config import Readout, RunConfig, SmlmtConfig
from pico_ds.data.corpus import Corpus
from pico_ds.errors import TaskError
from pico_ds.tasks.context_sampling import Documents
from pico_ds.tasks.index.class_words import WordSplit
from pico_ds.tasks.index.task_texts import Text, texts_of
from pico_ds.tasks.masked_word_tasks import SMLMT
from pico_ds.tasks.pooled_tasks import PooledTasks
from pico_ds.tasks.sentence_files import Sentence, read_sentences
from pico_ds.tasks.sentence_tasks import SentenceTasks
from pico_ds.tasks.task_shape import TaskShape
from pico_ds.tasks.task_source import MixedTasks, TaskSource

logger = logging.getLogger("pico_ds")

#: maximum number of consecutive pools that are skipped because they have too few words
_MAX_SKIPPED_POOLS = 3


class TaskBuilder:
    """Builds the tasks of a run. Task sources share the sentences and the held-out index."""

    def __init__(self, config: RunConfig, corpus: Corpus) -> None:
        self._config, self._corpus = config, corpus
        self.texts = texts_of(config, corpus)

    @cached_property
    def sentences(self) -> list[Sentence]:
        """Sentences of `smlmt.inject`, if there are any."""
        path = self._config.smlmt.inject.path
        return [] if path is None else read_sentences(Path(path))

    def training(self, readout: Readout | None = None) -> TaskSource:
        """Return tasks of training words in training documents, mixed with those of `smlmt.inject`.

        Raises:
            TaskError: the corpus or the sentences cannot supply the tasks.
        """
        smlmt = self._config.smlmt
        if self.texts.is_pooled:
            last = self._config.training.max_steps - 1
            tasks: TaskSource = PooledTasks(lambda number: self._pool_tasks(number, readout), smlmt, last)
        else:
            tasks = self.training_words(0, readout)
        injected = self.injected(readout)
        return MixedTasks(tasks, injected, smlmt.inject.ratio, self._config.training.seed) if injected else tasks

    def training_words(self, number: int, readout: Readout | None = None) -> SMLMT:
        """Return tasks of training words in training text `number`.

        Raises:
            TaskError: the text cannot supply the tasks.
        """
        smlmt = self._config.smlmt
        tasks = self._smlmt(self.texts.training(number), smlmt, "train", self._config.training.seed, readout, "any")
        # fail now instead of at the first meta step if tasks cannot be sampled
        tasks.sample(smlmt.warmup_steps + smlmt.curriculum_steps, index=0)
        return tasks

    def injected(self, readout: Readout | None = None) -> SentenceTasks | None:
        """Return tasks of the sentences of `smlmt.inject`; None if there are none.

        Raises:
            TaskError: the sentences cannot supply the tasks.
        """
        if not self.sentences:
            return None
        smlmt, seed = self._config.smlmt, self._config.training.seed
        tasks = SentenceTasks(self.sentences, self._corpus.tokenizer, smlmt, seed, readout, name=str(smlmt.inject.path))
        tasks.sample(step=0, index=0)
        return tasks

    def held_out(
        self,
        split: WordSplit,
        readout: Readout | None = None,
        shape: TaskShape | None = None,
        documents: Documents = "any",
    ) -> SMLMT:
        """Return tasks of held-out words in held-out documents. Words are sampled uniformly.

        The seed is `data.split_seed`, so that runs with different training seeds are evaluated on the same tasks.

        Args:
            shape: shape of the tasks; by default the largest of training.

        Raises:
            TaskError: the corpus cannot supply the tasks.
        """
        seed = self._config.data.split_seed
        return self._smlmt(
            self.texts.held_out, evaluation_settings(self._config.smlmt, shape), split, seed, readout, documents
        )

    def injected_held_out_words(self, split: WordSplit) -> list[str]:
        """Return the words of a held-out split that are also classes of injected tasks."""
        if not self.sentences or self.sentences[0].kind == "label":
            return []
        vocabulary = self.texts.held_out.vocabulary
        words = vocabulary.class_words(split, self._config.smlmt, self._config.data.split_seed)
        return sorted({vocabulary.words[word] for word in words} & {sentence.name for sentence in self.sentences})

    def _pool_tasks(self, number: int, readout: Readout | None) -> SMLMT:
        """Return the tasks of a pool. If a pool other than the first has too few words, use one of the next pools."""
        for other in range(number, number + _MAX_SKIPPED_POOLS if number else 0):
            try:
                return self.training_words(other, readout)
            except TaskError as error:
                logger.warning("warning: skipped pool %d of the tasks: %s", other, error)
        return self.training_words(number + _MAX_SKIPPED_POOLS if number else 0, readout)

    def _smlmt(
        self,
        text: Text,
        smlmt: SmlmtConfig,
        split: WordSplit,
        seed: int,
        readout: Readout | None,
        documents: Documents,
    ) -> SMLMT:
        source = (text.index, text.vocabulary, self._corpus.tokenizer)
        return SMLMT(*source, smlmt, split, self._config.data.split_seed, seed, readout, documents)


def evaluation_settings(smlmt: SmlmtConfig, shape: TaskShape | None = None) -> SmlmtConfig:
    """Return the settings of held-out tasks: one shape, by default the largest of training, and uniform sampling."""
    shape = shape or TaskShape(smlmt.n_ways[1], smlmt.k_shots[1], smlmt.q_query)
    return smlmt.model_copy(
        update={
            "n_way": shape.n_way,
            "k_shot": shape.k_shot,
            "q_query": shape.q_query,
            "class_sampling": "uniform",
            "curriculum_steps": 0,
        }
    )
