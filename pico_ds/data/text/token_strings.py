"""Finds the text of each entry of a tokenizer's vocabulary, by the rules of the tokenizer's own decoder."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from pico_ds.errors import DataError

#: surface of every special token: OBJECT REPLACEMENT CHARACTER, which is not part of any word
SPECIAL_SURFACE = "\N{OBJECT REPLACEMENT CHARACTER}".encode()
_BYTE_ENTRY = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: parts of a decoder that do not change the text of a single entry
_NEUTRAL_DECODERS = {"Fuse", "Strip"}
_SUPPORTED_DECODERS = ("ByteLevel", "Metaspace", "Replace", "ByteFallback", "WordPiece")


@dataclass(frozen=True)
class TokenSurfaces:
    """The text of each entry of a vocabulary.

    Attributes:
        surfaces: `[vocab_size]`, UTF-8 text of each entry; an entry of byte-level BPE may hold part of a character.
        begins_piece: `[vocab_size]`, whether the entry begins a WordPiece piece. WordPiece cuts a text at spaces and
            punctuation, and its entries do not tell which of the two precedes a piece. Always False for other
            tokenizers.
        unknown_id: id of the entry for characters that are not in the vocabulary; None if there is no such entry.
    """

    surfaces: tuple[bytes, ...]
    begins_piece: tuple[bool, ...]
    unknown_id: int | None

    @classmethod
    def of(cls, backend: Tokenizer) -> "TokenSurfaces":
        """Return the surfaces of all entries of a tokenizer.

        Raises:
            DataError: pico_ds does not support the kind of the tokenizer's decoder or model.
        """
        content = json.loads(backend.to_str())
        decoders = [*_flat(content["decoder"])]
        kinds = {decoder["type"] for decoder in decoders}
        if not kinds or (unsupported := kinds - {*_SUPPORTED_DECODERS, *_NEUTRAL_DECODERS}):
            got = ", ".join(sorted(unsupported)) if kinds else "none"
            raise DataError(_unsupported(f"its decoder is {got}"))
        if suffix := content["model"].get("end_of_word_suffix"):
            raise DataError(_unsupported(f"its entries end words with {suffix!r}"))
        vocabulary = backend.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values()) + 1
        surfaces, begins_piece = [b""] * size, [False] * size
        prefix = next((decoder["prefix"] for decoder in decoders if decoder["type"] == "WordPiece"), None)
        for entry, number in vocabulary.items():
            if prefix is not None:
                begins_piece[number] = not entry.startswith(prefix)
                entry = entry.removeprefix(prefix)
            surfaces[number] = _decoded(entry, decoders)
        falls_back = "ByteFallback" in kinds
        for number, token in backend.get_added_tokens_decoder().items():
            # some trainers mark the byte-fallback entries as special tokens
            if not (falls_back and _BYTE_ENTRY.fullmatch(token.content)):
                surfaces[number] = SPECIAL_SURFACE if token.special else token.content.encode()
        unknown = content["model"].get("unk_token")
        unknown_id = content["model"].get("unk_id") if unknown is None else vocabulary.get(unknown)
        return cls(tuple(surfaces), tuple(begins_piece), unknown_id)


def _flat(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the parts of a decoder in the order in which they are applied."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _flat(part)
    else:
        yield decoder


def _decoded(entry: str, decoders: list[dict[str, Any]]) -> bytes:
    for decoder in decoders:
        match decoder["type"]:
            case "ByteLevel":
                # an added token may hold characters that do not represent a byte
                if all(character in _BYTE_OF_CHARACTER for character in entry):
                    return bytes(_BYTE_OF_CHARACTER[character] for character in entry)
            case "ByteFallback":
                if byte := _BYTE_ENTRY.fullmatch(entry):
                    return bytes([int(byte[1], 16)])
            case "Metaspace":
                entry = entry.replace(decoder["replacement"], " ")
            case "Replace":
                pattern = decoder["pattern"]
                if "Regex" in pattern:
                    raise DataError(_unsupported(f"its decoder replaces the regular expression {pattern['Regex']!r}"))
                entry = entry.replace(pattern["String"], decoder["content"])
    return entry.encode()


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each printable character represents in byte-level BPE (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _bytes_of_characters()


def _unsupported(why: str) -> str:
    return (
        f"data.tokenizer: the words of a text cannot be found from its token ids, because {why}; use a tokenizer whose "
        f"decoder is one of {', '.join(_SUPPORTED_DECODERS)}, or omit data.tokenizer to train one"
    )
