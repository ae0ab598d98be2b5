from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pico_ds.config import SmlmtConfig
from pico_ds.data.text.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from pico_ds.data.token_stream import TokenStream
from pico_ds.tasks.index.class_words import ClassWords, WordSplit
from pico_ds.tasks.index.corpus_word_index import WordIndex
from pico_ds.tasks.index.token_word_boundaries import TokenClasses
from pico_ds.tasks.masked_word_tasks import SMLMT

WORDS = ["apple", "bridge", "castle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket"]
WORDS += ["kettle", "ladder", "magnet", "needle", "orange"]
#: a small vocabulary, so that most words have several tokens
VOCAB_SIZE = 330


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    text = " ".join(f"{word} {word.title()}, {word}s {number}." for number, word in enumerate(WORDS * 20))
    train_tokenizer([text], VOCAB_SIZE, directory)
    return load_tokenizer(directory)


def stream_of(documents: list[str], tokenizer: TextTokenizer) -> TokenStream:
    encoded = [[*ids, tokenizer.end_of_text_id] for ids in tokenizer.encode(documents)]
    tokens = np.array([token for ids in encoded for token in ids], dtype=np.uint16)
    return TokenStream(tokens, np.cumsum([len(ids) for ids in encoded]))


MakeTasks = Callable[..., SMLMT]


@pytest.fixture(scope="session")
def make_tasks(tokenizer: TextTokenizer) -> MakeTasks:
    def make(
        documents: list[str], config: SmlmtConfig, split: WordSplit = "train", seed: int = 0, split_seed: int = 0
    ) -> SMLMT:
        stream, classes = stream_of(documents, tokenizer), TokenClasses.of(tokenizer)
        lexicon = ClassWords.build(stream, stream_of(["nothing"], tokenizer), classes)
        index = WordIndex(stream, lexicon, classes, config)
        return SMLMT(index, lexicon, tokenizer, config, split, split_seed, seed)

    return make
