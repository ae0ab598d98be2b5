"""Trains small tokenizers of common families, and provides texts in many scripts."""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pico_ds.data.text.tokenizer import TextTokenizer, import_tokenizer, load_tokenizer, train_tokenizer

#: the first article of the Universal Declaration of Human Rights, in part with additional words and punctuation
SCRIPTS = {
    "English": "All human beings are born free and equal in dignity and rights. They are endowed with reason, and it's "
    "well-known: “every one's” self-respect—the U.S. has 20th-century words; don't 'quote' them (or do)!",
    "French, decomposed": "Tous les e\u0302tres humains naissent libres et e\u0301gaux en dignite\u0301 et en droits, "
    "doue\u0301s de raison et de conscience.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. „Straße“, Größe und Übermut.",
    "Turkish": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Işık ve İstanbul.",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Russian": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Bengali": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "Tamil": "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும் உரிமைகளிலும் சமமானவர்கள்.",
    "Arabic, with vowels": "يُولَدُ جَمِيعُ النَّاسِ أَحْرَارًا مُتَسَاوِينَ فِي الْكَرَامَةِ وَالْحُقُوقِ،",
    "Persian": "تمام افراد بشر آزاد زاده می‌شوند و از لحاظ حیثیت و کرامت و حقوق با هم برابرند.",
    "Hebrew, with vowels": 'כָּל בְּנֵי הָאָדָם נוֹלְדוּ בְּנֵי חוֹרִין וְשָׁוִים בְּעֶרְכָּם וּבִזְכֻיּוֹתֵיהֶם צה"ל.',
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "Amharic": "የሰው፡ልጅ፡ሁሉ፡ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
}
UNSPACED = {
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม",
}

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _pico_ds(texts: list[str], vocab_size: int, directory: Path) -> None:
    train_tokenizer(texts, vocab_size, directory)


def _byte_level(texts: list[str], vocab_size: int, directory: Path) -> None:
    """Like Qwen and Llama 3: an entry can start with punctuation that is followed by letters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    _save(backend, directory, eos_token="<|endoftext|>")


def _unigram(texts: list[str], vocab_size: int, directory: Path) -> None:
    """Like T5 and XLNet: words begin with U+2581, and the decoder drops the first space."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )
    _save(backend, directory, unk_token="<unk>", eos_token="</s>")


def _byte_fallback(texts: list[str], vocab_size: int, directory: Path) -> None:
    """Like Llama 2, Mistral and Gemma: characters that are not in the vocabulary become bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # a small alphabet, so that tests also cover the fallback to bytes
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, limit_alphabet=60, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.pre_tokenizer = None
    _save(backend, directory, unk_token="<unk>", eos_token="</s>")


def _word_piece(texts: list[str], vocab_size: int, directory: Path) -> None:
    """Like BERT: entries inside a word begin with ##, and spaces are not encoded."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    )
    _save(backend, directory, unk_token="[UNK]", eos_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]")


FAMILIES: dict[str, Callable[[list[str], int, Path], None]] = {
    "pico_ds": _pico_ds,
    "byte level": _byte_level,
    "unigram": _unigram,
    "byte fallback": _byte_fallback,
    "word piece": _word_piece,
}


def make_tokenizer(family: str, texts: list[str], vocab_size: int, directory: Path) -> TextTokenizer:
    """Train a tokenizer of a family, and load it as a run does.

    Args:
        directory: an empty directory. The trained tokenizer is written to `trained` in it.
    """
    FAMILIES[family](texts, vocab_size, directory / "trained")
    if family == "pico_ds":
        return load_tokenizer(directory / "trained")
    import_tokenizer(str(directory / "trained"), directory / "imported")
    return load_tokenizer(directory / "imported")


def _save(backend: Tokenizer, directory: Path, **special: str) -> None:
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
