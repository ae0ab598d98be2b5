"""Trains a byte-level BPE tokenizer or imports one from transformers, and saves it as a directory in HF format."""

import itertools
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pico_ds.data.keyed_random import digest64
from pico_ds.errors import DataError

logger = logging.getLogger("pico_ds")

MASK_TOKEN, PAD_TOKEN, END_OF_TEXT_TOKEN = "[MASK]", "[PAD]", "<|endoftext|>"
_SPECIAL_IDS_FILE = "special_token_ids.json"
#: glob patterns of the files of a transformers tokenizer
_TOKENIZER_FILES = ("*.json", "*.txt", "*.model")
#: longest run without whitespace, or of only whitespace, in the texts that train a BPE [characters]; longer runs are
#: cut, because the training time grows with the square of their length
_LONGEST_RUN = 256
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_RUN + 1},}}|\s{{{_LONGEST_RUN + 1},}}")


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the ids of the special tokens that tasks and rows need."""

    backend: Tokenizer
    mask_id: int
    pad_id: int
    end_of_text_id: int

    @cached_property
    def vocab_size(self) -> int:
        """Number of embedding rows for all tokens, including special tokens: the largest id plus one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def digest(self) -> str:
        """Digest of the entries, ids and merges. It does not depend on the library release that saved the tokenizer."""
        return _digest(self.backend)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.backend.get_added_tokens_decoder().values()
        # (?!) never matches; it is used if there are no special tokens
        return re.compile("|".join(re.escape(token.content) for token in added if token.special) or "(?!)")

    @cached_property
    def _leaks_special(self) -> bool:
        """Whether special tokens are entries of the model itself, so that encoding a text can produce their ids."""
        added = self.backend.get_added_tokens_decoder().items()
        special = {number: token.content for number, token in added if token.special}
        encoded = self.backend.encode_batch_fast([*special.values()], add_special_tokens=False)
        return any(number in encoding.ids for number, encoding in zip(special, encoded, strict=True))

    def count_special(self, texts: Iterable[str]) -> Counter[str]:
        """Return how often each special token occurs in the texts."""
        return Counter(found for text in texts for found in self._special.findall(text))

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text. A special token that occurs in a text is encoded as plain text."""
        if self._leaks_special and any(map(self._special.search, texts)):
            return [self._encode_around_special(text) for text in texts]
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_around_special(self, text: str) -> list[int]:
        """Return the token ids of a text that is cut inside each special token, so that the model cannot match one."""
        cuts = [0, *(found.start() + 1 for found in self._special.finditer(text)), len(text)]
        parts = [text[start:end] for start, end in itertools.pairwise(cuts)]
        encoded = self.backend.encode_batch_fast(parts, add_special_tokens=False)
        return [token for encoding in encoded for token in encoding.ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, including special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=False)


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Train a byte-level BPE and write it to `directory`.

    The BPE has `vocab_size` entries (fewer on a tiny corpus, but at least one for each of the 256 bytes), plus three
    special tokens.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator((part for text in texts for part in _without_long_runs(text)), trainer)
    backend.add_special_tokens([MASK_TOKEN, PAD_TOKEN, END_OF_TEXT_TOKEN])
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "mask_token": MASK_TOKEN,
        "pad_token": PAD_TOKEN,
        "eos_token": END_OF_TEXT_TOKEN,
        "bos_token": END_OF_TEXT_TOKEN,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "tokenizer_config.json", config)
    _write_special_ids(directory, backend, MASK_TOKEN, PAD_TOKEN, END_OF_TEXT_TOKEN)


def _without_long_runs(text: str) -> Iterator[str]:
    """Yield the parts of a text, cut so that no run of whitespace or non-whitespace exceeds `_LONGEST_RUN`."""
    start = 0
    for run in _LONG_RUN.finditer(text):
        for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]


def _digest(backend: Tokenizer) -> str:
    merges = json.loads(backend.to_str())["model"].get("merges", [])
    # current files store a merge as a pair, and older files as one string
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    entries = sorted(backend.get_vocab(with_added_tokens=True).items())
    return f"{digest64(json.dumps([entries, merges])):016x}"


def digest_of_file(path: Path) -> str | None:
    """Return the digest of the tokenizer in a tokenizer.json, or None if the file does not exist.

    Raises:
        DataError: the file is damaged.
    """
    try:
        return _digest(Tokenizer.from_file(str(path))) if path.is_file() else None
    except Exception as error:
        raise DataError(f"{path}: cannot read a tokenizer ({error})") from error


def tokenizer_identity(name: str) -> str:
    """Return a digest of the tokenizer files if `name` is a directory, or `name` itself if it is a hub id."""
    if not Path(name).is_dir():
        return name
    files = sorted({path for pattern in _TOKENIZER_FILES for path in Path(name).glob(pattern)})
    return f"{digest64(*(part for path in files for part in (path.name, path.read_bytes()))):016x}"


def warn_about_special_tokens(counts: Counter[str]) -> None:
    """Log one warning if the texts contain special tokens."""
    if counts:
        found = ", ".join(f"{token!r} {count:,} times" for token, count in counts.most_common(5))
        logger.warning(
            "warning: the texts contain special tokens of the tokenizer (%s); these are encoded as text", found
        )


def import_tokenizer(name: str, directory: Path) -> None:
    """Load a transformers tokenizer (directory or hub id) and save it to `directory`.

    Adds a mask token and a padding token if the tokenizer has none.

    Raises:
        DataError: the tokenizer cannot be loaded, is not a fast tokenizer, has no end-of-text token, or has gaps in its
            ids that prevent adding a token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer also looks at the model's configuration and code, which are not needed to load a tokenizer.json
    has_tokenizer_file = Path(name, "tokenizer.json").is_file()
    try:
        if has_tokenizer_file:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except Exception as error:
        raise DataError(f"data.tokenizer: cannot load {name!r}: {type(error).__name__}: {error}") from error
    if not tokenizer.is_fast:
        raise DataError(f"data.tokenizer: {name!r} has no fast (Rust) version, which pico_ds needs")
    if tokenizer.eos_token is None:
        raise DataError(f"data.tokenizer: {name!r} has no end-of-text token (eos_token)")
    words = {number: word for word, number in tokenizer.backend_tokenizer.get_vocab().items()}
    for kind, token in (("mask_token", MASK_TOKEN), ("pad_token", PAD_TOKEN)):
        if getattr(tokenizer, kind) is None:
            tokenizer.add_special_tokens({kind: token})
            number = tokenizer.convert_tokens_to_ids(token)
            if words.get(number, token) != token:
                raise DataError(
                    f"data.tokenizer: the ids of {name!r} have a gap: a new {token!r} would get the id {number}, "
                    f"which already belongs to {words[number]!r}; add a {kind} to the tokenizer"
                )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(directory))
    _write_special_ids(
        directory, tokenizer.backend_tokenizer, tokenizer.mask_token, tokenizer.pad_token, tokenizer.eos_token
    )


def load_tokenizer(directory: Path) -> TextTokenizer:
    """Return the tokenizer that `train_tokenizer` or `import_tokenizer` saved.

    Raises:
        DataError: the files in the directory are missing or damaged.
    """
    try:
        ids = json.loads((directory / _SPECIAL_IDS_FILE).read_text())
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:
        raise DataError(f"{directory}: cannot read a tokenizer ({error})") from error
    backend.encode_special_tokens = True
    names = ["end_of_text_id", "mask_id", "pad_id"]
    if isinstance(ids, dict) and sorted(ids) == names and all(type(number) is int for number in ids.values()):
        tokenizer = TextTokenizer(backend=backend, **ids)
        if all(0 <= number < tokenizer.vocab_size for number in ids.values()):
            return tokenizer
    raise DataError(f"{directory / _SPECIAL_IDS_FILE}: must contain {', '.join(names)}, each an id of the tokenizer")


def _write_special_ids(directory: Path, backend: Tokenizer, mask: str, pad: str, end_of_text: str) -> None:
    ids = {
        "mask_id": backend.token_to_id(mask),
        "pad_id": backend.token_to_id(pad),
        "end_of_text_id": backend.token_to_id(end_of_text),
    }
    assert None not in ids.values(), f"special tokens missing from the vocabulary: {ids}"
    _write_json(directory / _SPECIAL_IDS_FILE, ids)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
