"""A text corpus that is tokenized on first use. Each split is a memory-mapped token stream with document boundaries."""

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
    warn_about_special_tokens,
)
from pico_ds.data.token_stream import TokenStream
from pico_ds.errors import DataError
from pico_ds.file_writing import add_path_to_errors
from pico_ds.progress import track

DocumentSplit = Literal["train", "validation"]

#: increase this number when a code change alters the cached files for equal settings
_CACHE_VERSION = 2
#: approximate number of tokens of a split that its digest covers
_SAMPLED_TOKENS = 2**18


@dataclass(frozen=True)
class TextCorpus:
    """A fully tokenized corpus: the tokenizer, the token streams, and the directory that caches them."""

    directory: Path
    tokenizer: TextTokenizer
    train: TokenStream
    validation: TokenStream

    @property
    def tokenizer_directory(self) -> Path:
        """Directory that holds the tokenizer in HF format."""
        return self.directory / "tokenizer"

    def identity(self) -> dict[str, Any]:
        """Return the sizes of the splits, digests of a sample of their tokens, and a digest of the tokenizer.

        The result is equal for equal corpora, regardless of where their files are.
        """
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
        """Return the rows to train on, an endless sequence with a different order in each epoch.

        Raises:
            DataError: the split has fewer tokens than one row.
        """
        return ShuffledRows(TokenRows(self.train, sequence_length), seed)

    def validation_rows(self, sequence_length: int) -> TokenRows:
        """Return the held-out rows, in order.

        Raises:
            DataError: the split has fewer tokens than one row.
        """
        return TokenRows(self.validation, sequence_length)


def open_text_corpus(config: DataConfig) -> TextCorpus:
    """Return the corpus, memory-mapped. The first call tokenizes the documents and caches the tokens.

    Several processes may call this function at the same time: one process does the work under a file lock, and the
    others wait for it.

    Raises:
        DataError: the data cannot be read, or a split has no documents.
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
    """Build the corpus in a temporary directory and rename it, so that an existing `directory` is always complete."""
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        with add_path_to_errors(staging):
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
        # convert at once to save memory: the final type takes 2 bytes per token for most vocabularies
        encoded = _tokenize(documents, tokenizer, special)
        tokens = [_checked(ids, tokenizer.vocab_size).astype(dtype) for ids in encoded]
        if not tokens:
            raise DataError(_empty_split(config, split))
        np.save(staging / f"{split}.tokens.npy", np.concatenate(tokens))
        np.save(staging / f"{split}.document_ends.npy", np.cumsum([len(ids) for ids in tokens]))
    warn_about_special_tokens(special)
    (staging / "corpus.json").write_text(json.dumps(config.model_dump(), indent=2) + "\n")


def _make_tokenizer(config: DataConfig, directory: Path) -> None:
    if config.tokenizer is not None:
        import_tokenizer(config.tokenizer, directory)
        return
    texts = []
    for document in track(read_documents(config), "reading documents for a tokenizer"):
        if not isinstance(document, str):
            raise DataError(
                "data.tokenizer: the corpus is already tokenized; set it to the tokenizer that was used (path or id)"
            )
        if not is_validation(document, config):
            texts.append(document)
    if not texts:
        raise DataError(_empty_split(config, "train"))
    train_tokenizer(texts, config.tokenizer_vocab_size, directory)


def _tokenize(
    documents: Iterator[Document], tokenizer: TextTokenizer, special: Counter[str]
) -> Iterator[npt.ArrayLike]:
    """Yield the token ids of each document. Texts get an end-of-text token, and token ids are left unchanged.

    Args:
        special: updated with the number of times that each special token occurs in the texts.
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
            "entries; set data.tokenizer to the tokenizer that was used"
        )
    return array


def _empty_split(config: DataConfig, split: DocumentSplit) -> str:
    by_file = config.txt_documents == "file" and any(path.endswith(".txt") for path in config.paths)
    hint = "set data.txt_documents: paragraph (currently each .txt file is one document), " if by_file else ""
    return (
        f"no {split} documents: the corpus is too small to split by document at data.validation_fraction = "
        f"{config.validation_fraction}; {hint}use more documents, or change the fraction or data.split_seed"
    )
