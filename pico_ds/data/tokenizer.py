"""Tokenizers: train a byte-level BPE, or bring one of transformers; both end as one directory in HF format."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pico_ds.data.errors import DataError

MASK_TOKEN, PAD_TOKEN, END_OF_TEXT_TOKEN = "[MASK]", "[PAD]", "<|endoftext|>"
_SPECIAL_IDS_FILE = "special_token_ids.json"


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the ids of the special tokens that tasks and rows need."""

    backend: Tokenizer
    mask_id: int
    pad_id: int
    end_of_text_id: int

    @property
    def vocab_size(self) -> int:
        """Entries, special tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens shown."""
        return self.backend.decode(list(ids), skip_special_tokens=False)


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Train a byte-level BPE of exactly `vocab_size` entries (fewer on a tiny corpus), plus three special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
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


def import_tokenizer(name: str, directory: Path) -> None:
    """Take a tokenizer of transformers (directory or hub id), adding [MASK] and a padding token where it has none.

    Raises:
        DataError: it cannot be loaded, is not a fast tokenizer, or has no end-of-text token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # a directory with tokenizer.json needs no look at the model beside it, nor at the model's code
    plain = Path(name, "tokenizer.json").is_file()
    try:
        if plain:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"data.tokenizer: cannot load {name!r}: {error}") from error
    if not tokenizer.is_fast:
        raise DataError(f"data.tokenizer: {name!r} has no fast (Rust) version, which pico_ds needs")
    if tokenizer.eos_token is None:
        raise DataError(f"data.tokenizer: {name!r} has no end-of-text token (eos_token)")
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(directory))
    _write_special_ids(
        directory, tokenizer.backend_tokenizer, tokenizer.mask_token, tokenizer.pad_token, tokenizer.eos_token
    )


def load_tokenizer(directory: Path) -> TextTokenizer:
    """Load what `train_tokenizer` or `import_tokenizer` wrote."""
    ids = json.loads((directory / _SPECIAL_IDS_FILE).read_text())
    return TextTokenizer(backend=Tokenizer.from_file(str(directory / "tokenizer.json")), **ids)


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
