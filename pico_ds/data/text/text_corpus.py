"""A corpus of text, tokenized on first use: one memory-mapped stream of tokens per split, with document boundaries."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from pico_ds.config import DataConfig
from pico_ds.data.cache_directory import cache_directory
from pico_ds.data.input_files import Document
from pico_ds.data.keyed_random import digest64
from pico_ds.data.rows import ShuffledRows, TokenRows
from pico_ds.data.text.documents import corpus_identity, is_validation, read_documents
from pico_ds.data.text.tokenizer import (
    TextTokenizer,
    import_tokenizer,
    load_tokenizer,
    tokenizer_identity,
    train_tokenizer,
    warn_of_special,
)
from pico_ds.data.token_stream import TokenStream
from pico_ds.errors import DataError
from pico_ds.file_writing import naming
from pico_ds.progress import track

DocumentSplit = Literal["train", "validation"]

#: raise when the cached files would differ for equal settings
_CACHE_VERSION = 2
#: tokens of a split that its digest looks at
_SAMPLED_TOKENS = 2**18


@dataclass(frozen=True)
class TextCorpus:
    """A corpus that is tokenized as a whole: tokenizer, streams, and the directory they are cached in."""

    directory: Path
    tokenizer: TextTokenizer
    train: TokenStream
    validation: TokenStream

    @property
    def tokenizer_directory(self) -> Path:
        """Directory with the tokenizer in HF format."""
        return self.directory / "tokenizer"

    def identity(self) -> dict[str, Any]:
        """Equal for equal corpora, wherever their files are: sizes, and digests of tokens and tokenizer."""
        streams = {
            split: {
                "tokens": len(stream.tokens),
                "documents": len(stream.document_ends),
                "digest": f"{digest64(stream.tokens[:: max(1, len(stream.tokens) // _SAMPLED_TOKENS)].tobytes()):016x}",
            }
            for split, stream in (("train", self.train), ("validation", self.validation))
        }
        return {**streams, "tokenizer": self.tokenizer.digest}

    def training_rows(self, sequence_length: int, seed: int) -> ShuffledRows:
        """What training reads; every epoch has an order of its own.

        Raises:
            DataError: fewer tokens than one row has.
        """
        return ShuffledRows(TokenRows(self.train, sequence_length), seed)

    def validation_rows(self, sequence_length: int) -> TokenRows:
        """Held-out rows, in order.

        Raises:
            DataError: fewer tokens than one row has.
        """
        return TokenRows(self.validation, sequence_length)


def open_text_corpus(config: DataConfig) -> TextCorpus:
    """Tokenize the corpus on first use, then memory-map it.

    Several processes may call this at once: one does the work under a file lock, the others find it done.

    Raises:
        DataError: data that cannot be read, or a split without documents.
    """
    key = digest64(
        _CACHE_VERSION,
        *corpus_identity(config),
        config.tokenizer_vocab_size if config.tokenizer is None else tokenizer_identity(config.tokenizer),
        config.validation_fraction.hex(),
        config.split_seed,
    )
    directory = cache_directory(config) / f"corpus-{key:016x}"
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            _build(config, directory)
    return TextCorpus(
        directory=directory,
        tokenizer=load_tokenizer(directory / "tokenizer"),
        train=_open_stream(directory, "train"),
        validation=_open_stream(directory, "validation"),
    )


def _open_stream(directory: Path, split: DocumentSplit) -> TokenStream:
    return TokenStream(
        tokens=np.load(directory / f"{split}.tokens.npy", mmap_mode="r"),
        document_ends=np.load(directory / f"{split}.document_ends.npy"),
    )


def _build(config: DataConfig, directory: Path) -> None:
    """Write everything beside its place and rename, so that a directory that exists is complete."""
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        with naming(staging):
            _fill(config, staging)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fill(config: DataConfig, staging: Path) -> None:
    _make_tokenizer(config, staging / "tokenizer")
    tokenizer = load_tokenizer(staging / "tokenizer")
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    special = Counter[str]()
    for split in ("train", "validation"):
        documents = (
            document
            for document in track(read_documents(config), f"tokenizing documents, {split}")
            if is_validation(document, config) == (split == "validation")
        )
        # kept in the final type, 2 bytes a token for most vocabularies
        encoded = _tokenize(documents, tokenizer, special)
        tokens = [_checked(ids, tokenizer.vocab_size).astype(dtype) for ids in encoded]
        if not tokens:
            raise DataError(_empty_split(config, split))
        np.save(staging / f"{split}.tokens.npy", np.concatenate(tokens))
        np.save(staging / f"{split}.document_ends.npy", np.cumsum([len(ids) for ids in tokens]))
    warn_of_special(special)
    (staging / "corpus.json").write_text(json.dumps(config.model_dump(), indent=2) + "\n")


def _make_tokenizer(config: DataConfig, directory: Path) -> None:
    if config.tokenizer is not None:
        import_tokenizer(config.tokenizer, directory)
        return
    texts = []
    for document in track(read_documents(config), "reading documents for a tokenizer"):
        if not isinstance(document, str):
            raise DataError(
                "data.tokenizer: the corpus is already tokenized; name the tokenizer that made it (directory or hub id)"
            )
        if not is_validation(document, config):
            texts.append(document)
    if not texts:
        raise DataError(_empty_split(config, "train"))
    train_tokenizer(texts, config.tokenizer_vocab_size, directory)


def _tokenize(
    documents: Iterator[Document], tokenizer: TextTokenizer, special: Counter[str]
) -> Iterator[npt.ArrayLike]:
    """Token ids of each document; an end of text is added to text, while token rows are taken as they are.

    Args:
        special: special tokens that stand in the texts are counted here.
    """
    while batch := list(islice(documents, 256)):
        texts = [document for document in batch if isinstance(document, str)]
        special.update(tokenizer.count_special(texts))
        encoded = iter(tokenizer.encode(texts))
        for document in batch:
            yield [*next(encoded), tokenizer.end_of_text_id] if isinstance(document, str) else document


def _checked(ids: npt.ArrayLike, vocab_size: int) -> npt.NDArray[np.int64]:
    array = np.asarray(ids, dtype=np.int64)
    if array.min() < 0 or array.max() >= vocab_size:
        raise DataError(
            f"a document holds token ids from {array.min()} to {array.max()}, but the tokenizer has {vocab_size} "
            "entries; set data.tokenizer to the one that made the files"
        )
    return array


def _empty_split(config: DataConfig, split: DocumentSplit) -> str:
    by_file = config.txt_documents == "file" and any(path.endswith(".txt") for path in config.paths)
    first = "write data.txt_documents: paragraph (now each .txt file is ONE document), " if by_file else ""
    return (
        f"no {split} documents: the corpus is too small to split by document at data.validation_fraction = "
        f"{config.validation_fraction}; {first}give more documents, or change the fraction or data.split_seed"
    )
