"""Imported tokenizers: gaps in the vocabulary, special tokens in texts, and a tokenizer that was replaced."""

import json
import logging
import random
import shutil
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pico_ds.config import DataConfig, PerplexityConfig
from pico_ds.data.shards.shard_corpus import open_shard_corpus
from pico_ds.data.shards.shard_preparation import Preparation, local_source
from pico_ds.data.text.perplexity_texts import read_texts
from pico_ds.data.text.text_corpus import open_text_corpus
from pico_ds.data.text.tokenizer import (
    _LONGEST_RUN,
    _without_long_runs,
    import_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from pico_ds.errors import DataError
from pico_ds.evaluation.perplexity import PerplexityDataset
from tests.conftest import write_text_corpus
from tests.shards import write_shards

MARKED = "[MASK] and <|endoftext|> are tokens. [PAD]"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_text_corpus(tmp_path / "corpus.jsonl", 40)


def texts_of(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]


def files_config(tmp_path: Path, *paths: Path, tokenizer: Path | None = None) -> DataConfig:
    return DataConfig(
        source="files",
        paths=[str(path) for path in paths],
        cache_dir=str(tmp_path / "cache"),
        tokenizer_vocab_size=400,
        tokenizer=None if tokenizer is None else str(tokenizer),
    )


def word_tokenizer(corpus: Path, first_id: int, directory: Path) -> dict[str, int]:
    """Save a tokenizer of whole words whose ids begin after a gap, and return its vocabulary."""
    words = sorted({word for text in texts_of(corpus) for word in text.replace(".", " .").split()})
    vocabulary = {"<eos>": 0, "<unk>": 1, **{word: first_id + number for number, word in enumerate(words)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>").save_pretrained(directory)
    return vocabulary


def test_the_size_of_a_vocabulary_with_a_gap_is_its_largest_id_plus_one(corpus: Path, tmp_path: Path) -> None:
    vocabulary = word_tokenizer(corpus, 1000, tmp_path / "holes")
    opened = open_text_corpus(files_config(tmp_path, corpus, tokenizer=tmp_path / "holes"))
    tokenizer = opened.tokenizer
    assert tokenizer.vocab_size == max(vocabulary.values()) + 1 > tokenizer.backend.get_vocab_size()
    assert opened.train.tokens.max() < tokenizer.vocab_size
    ids = [tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_of_text_id, *vocabulary.values()]
    assert len(set(ids)) == len(vocabulary) + 2, "every id has one meaning"


def test_a_new_mask_token_never_gets_the_id_of_a_word(corpus: Path, tmp_path: Path) -> None:
    """The id of a new token is the number of entries, which a word may already have if there is a gap."""
    word_tokenizer(corpus, 3, tmp_path / "holes")
    with pytest.raises(
        DataError, match=r"a new '\[MASK\]' would get the id \d+, which already belongs to '\w+'; add a mask"
    ):
        import_tokenizer(str(tmp_path / "holes"), tmp_path / "imported")


def test_special_tokens_in_a_text_are_encoded_as_text(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pico_ds"), "propagate", True)
    with corpus.open("a") as file:
        file.write(json.dumps({"text": MARKED}) + "\n")
    opened = open_text_corpus(files_config(tmp_path, corpus))
    tokenizer = opened.tokenizer
    special = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_of_text_id}
    (ids,) = tokenizer.encode([MARKED])
    assert not special & set(ids)
    assert tokenizer.decode(ids) == MARKED
    ends = [*opened.train.document_ends, *opened.validation.document_ends]
    tokens = [*opened.train.tokens.tolist(), *opened.validation.tokens.tolist()]
    assert tokens.count(tokenizer.end_of_text_id) == len(ends) == 41
    assert not {tokenizer.mask_id, tokenizer.pad_id} & set(tokens)
    warning = "the texts contain special tokens of the tokenizer ('[MASK]' 1 times"
    assert sum(warning in record.getMessage() for record in caplog.records) == 1

    caplog.clear()
    rows = PerplexityDataset(read_texts(PerplexityConfig(data=str(corpus))), tokenizer, tokenizer.vocab_size, 64)
    assert not special & {int(token) for row in rows.rows for token in row}
    assert sum(warning in record.getMessage() for record in caplog.records) == 1

    caplog.clear()
    preparation = prepare(corpus, opened.tokenizer_directory, tmp_path / "out")
    preparation.run(lambda _: None)
    assert preparation.counts.special == {"[MASK]": 1, "<|endoftext|>": 1, "[PAD]": 1}
    assert sum(warning in record.getMessage() for record in caplog.records) == 1


def test_special_tokens_that_are_model_entries_are_encoded_as_text(tmp_path: Path) -> None:
    """Exports of XLM-R and T5 have such entries, which the model itself matches in a text."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<mask>", 0.0), *((piece, -2.0) for piece in "\u2581<>/abkms")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {"unk_token": "<unk>", "eos_token": "</s>", "mask_token": "<mask>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path / "unigram")
    import_tokenizer(str(tmp_path / "unigram"), tmp_path / "imported")
    tokenizer = load_tokenizer(tmp_path / "imported")
    special_ids = {tokenizer.mask_id, tokenizer.end_of_text_id}
    (plain, marked) = tokenizer.encode(["a b", "a <mask> b </s>"])
    assert not special_ids & set(marked)
    assert tokenizer.decode(marked).replace(" ", "") == "a<mask>b</s>"
    assert plain == tokenizer.encode(["a b"])[0]


def prepare(corpus: Path, tokenizer: Path, out: Path) -> Preparation:
    source = local_source([str(corpus)], "text", "file")
    return Preparation(source, str(tokenizer), out, sequence_length=16, rows_per_shard=2000, workers=1)


def replace_tokenizer(directory: Path, texts: list[str]) -> None:
    shutil.rmtree(directory)
    train_tokenizer(texts, 300, directory)


def test_a_replaced_tokenizer_is_used_for_text(corpus: Path, tmp_path: Path) -> None:
    train_tokenizer(texts_of(corpus), 400, tmp_path / "tokenizer")
    config = files_config(tmp_path, corpus, tokenizer=tmp_path / "tokenizer")
    before = open_text_corpus(config)
    again = open_text_corpus(config)
    assert (again.directory, again.identity()) == (before.directory, before.identity())
    replace_tokenizer(tmp_path / "tokenizer", texts_of(corpus))
    after = open_text_corpus(config)
    assert (before.tokenizer.vocab_size, after.tokenizer.vocab_size) == (403, 303)
    assert before.identity()["tokenizer"] != after.identity()["tokenizer"]
    assert len(after.train.tokens) > len(before.train.tokens)


def test_a_replaced_tokenizer_is_used_for_shards(tmp_path: Path) -> None:
    paths, tokenizer = write_shards(tmp_path)
    config = DataConfig(
        source="shards",
        paths=[str(path) for path in paths],
        tokenizer=str(tokenizer),
        sequence_length=32,
        cache_dir=str(tmp_path / "cache"),
    )
    before = open_shard_corpus(config)
    shutil.rmtree(tokenizer)
    texts = texts_of(tmp_path / "corpus.jsonl")
    train_tokenizer([*texts, *map(str.upper, texts)], 700, tokenizer)
    after = open_shard_corpus(config)
    assert after.tokenizer.vocab_size > before.tokenizer.vocab_size
    assert before.identity()["tokenizer"] != after.identity()["tokenizer"]


def test_shards_of_a_replaced_tokenizer_are_not_complete(corpus: Path, tmp_path: Path) -> None:
    train_tokenizer(texts_of(corpus), 400, tmp_path / "tokenizer")
    job = prepare(corpus, tmp_path / "tokenizer", tmp_path / "out")
    assert job.run(lambda _: None)
    assert not job.run(lambda _: None), "all shards exist"
    replace_tokenizer(tmp_path / "tokenizer", texts_of(corpus))
    with pytest.raises(DataError, match=r"holds shards of another job: tokenizer_sha256 was '\w+', now '\w+'"):
        job.run(lambda _: None)
    assert load_tokenizer(tmp_path / "out" / "tokenizer").vocab_size == 403, "the tokenizer of the shards is kept"
    assert not (tmp_path / "out" / "tokenizer.partial").exists()


def test_a_job_without_a_shard_uses_the_tokenizer_of_the_new_command(corpus: Path, tmp_path: Path) -> None:
    """The first start was interrupted before its first shard. The manifest must describe the tokenizer in use."""
    train_tokenizer(texts_of(corpus), 400, tmp_path / "first")
    train_tokenizer(texts_of(corpus), 300, tmp_path / "second")
    (tmp_path / "out").mkdir()
    import_tokenizer(str(tmp_path / "first"), tmp_path / "out" / "tokenizer")
    assert prepare(corpus, tmp_path / "second", tmp_path / "out").run(lambda _: None)
    assert load_tokenizer(tmp_path / "out" / "tokenizer").vocab_size == 303


def test_a_finished_job_of_an_earlier_version_is_recognized(corpus: Path, tmp_path: Path) -> None:
    train_tokenizer(texts_of(corpus), 400, tmp_path / "tokenizer")
    job = prepare(corpus, tmp_path / "tokenizer", tmp_path / "out")
    job.run(lambda _: None)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["files"] = {corpus.name: corpus.stat().st_size}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert not job.run(lambda _: None)
    with corpus.open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(DataError, match="another job: the files are different or were changed"):
        prepare(corpus, tmp_path / "tokenizer", tmp_path / "out").run(lambda _: None)


def test_files_with_equal_names_in_two_directories_are_different(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_text_corpus(tmp_path / name / "corpus.jsonl", 5)
    both = local_source([str(tmp_path / "?" / "corpus.jsonl")], "text", "file")
    one = local_source([str(tmp_path / "a" / "corpus.jsonl")], "text", "file")
    assert both.identity != one.identity
    assert len(both.identity["files"]) == 2


def test_long_runs_are_cut_without_losing_text() -> None:
    text = "word " * 10 + "a" * 1000 + " " * 700 + "tail" + "\n" * 300
    parts = [*_without_long_runs(text)]
    assert "".join(parts) == text
    assert max(len(run) for part in parts for run in part.split()) == _LONGEST_RUN
    assert [*_without_long_runs("a b c")] == ["a b c"]


@pytest.mark.parametrize("run", ["a" * 400_000, "".join(random.Random(0).choices("acgt", k=400_000)), " " * 400_000])
def test_training_time_on_a_long_run_is_similar_to_text(run: str, tmp_path: Path) -> None:
    """Without cutting the run, training takes thousands of times as long."""
    words = ["".join(random.Random(n).choices("abcdefghij", k=6)) for n in range(3000)]
    text = " ".join(random.Random(0).choices(words, k=57_000))[: len(run)]

    def seconds(texts: list[str], name: str) -> float:
        started = time.perf_counter()
        train_tokenizer(texts, 1000, tmp_path / name)
        return time.perf_counter() - started

    assert seconds([text, run], "run") < 20 * seconds([text, text], "text")
