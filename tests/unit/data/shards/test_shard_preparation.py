"""Raw text to shards: every token once, in order, for any number of processes and interruptions."""

import json
import logging
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pico_ds.data.shards import shard_preparation
from pico_ds.data.shards.shard_preparation import Counts, Preparation, Source, local_source
from pico_ds.data.shards.shard_writing import ShardWriter
from pico_ds.data.text.tokenizer import load_tokenizer, train_tokenizer
from pico_ds.errors import DataError

#: long, short, empty and unusual texts
TEXTS = ["a b c " * 200, "x", "", "  ", "nul \x00 byte", "é ü 你好 🦓", "half \ud83e", "b a " * 30, "tail"] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["a b c x nul byte tail " * 20], 280, directory)
    return directory


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n\n")
    return path


def rows_of(out: Path) -> np.ndarray:
    manifest = json.loads((out / "manifest.json").read_text())
    for name, shard in manifest["shards"].items():
        assert sha256((out / name).read_bytes()).hexdigest() == shard["sha256"]
    found = [np.array(pq.read_table(out / name)["input_ids"].to_pylist()) for name in manifest["shards"]]
    assert [len(rows) for rows in found] == [shard["rows"] for shard in manifest["shards"].values()]
    return np.concatenate(found)


def expected_tokens(tokenizer: Path) -> list[int]:
    loaded = load_tokenizer(tokenizer)
    texts = [text.encode("utf-8", errors="replace").decode().strip() for text in TEXTS]
    return [token for text in texts if text for token in (*loaded.encode([text])[0], loaded.end_of_text_id)]


def job(corpus: Path, tokenizer: Path, out: Path, **others: int) -> Preparation:
    settings = {"sequence_length": 16, "rows_per_shard": 20, "workers": 1, **others}
    return Preparation(local_source([str(corpus)], "text", "file"), str(tokenizer), out, **settings)


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_contain_every_token_in_order(corpus: Path, tokenizer: Path, tmp_path: Path, workers: int) -> None:
    preparation = job(corpus, tokenizer, tmp_path / "out", workers=workers)
    assert preparation.run(lambda _: None)
    expected = expected_tokens(tokenizer)
    rows = rows_of(tmp_path / "out")
    assert rows.ravel().tolist() == expected[: rows.size]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["dropped_tokens"] == len(expected) - rows.size < 17
    assert (manifest["documents"], preparation.counts.documents) == (35, 35)
    assert next(iter(manifest["shards"])).startswith("data/train-00000-of-000")
    assert not (tmp_path / "out" / ".partial").exists()
    # a second call changes nothing
    assert not job(corpus, tokenizer, tmp_path / "out").run(lambda _: None)


def test_an_interrupted_job_resumes(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    """The rows are equal to those of an uninterrupted job, for interruptions after different documents."""
    job(corpus, tokenizer, tmp_path / "whole").run(lambda _: None)
    tokens = _documents(tokenizer)
    for stop in (0, 1, 4, 7, 8, 20, 34):
        out = tmp_path / f"stopped_{stop}"
        writer = ShardWriter(out, {"a": 1}, 17, 20)
        for document in tokens[:stop]:
            writer.add(document)
        resumed = ShardWriter(out, {"a": 1}, 17, 20)
        for document in tokens[resumed.progress.documents :]:
            resumed.add(document)
        resumed.finish({})
        assert np.array_equal(rows_of(out), rows_of(tmp_path / "whole")), stop


def _documents(tokenizer: Path) -> list[np.ndarray]:
    loaded = load_tokenizer(tokenizer)
    texts = [text.encode("utf-8", errors="replace").decode().strip() for text in TEXTS]
    return [np.array([*loaded.encode([text])[0], loaded.end_of_text_id], dtype=np.int32) for text in texts if text]


class InterruptError(Exception):
    pass


def test_a_job_that_was_interrupted_after_two_shards_resumes(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    job(corpus, tokenizer, tmp_path / "whole").run(lambda _: None)
    out = tmp_path / "out"
    preparation = job(corpus, tokenizer, out)

    def stop(counts: Counts) -> None:
        if counts.shards == 2:
            raise InterruptError

    with pytest.raises(InterruptError):
        preparation.run(stop)
    assert not [*out.glob("data/*")]
    job(corpus, tokenizer, out).run(lambda _: None)
    assert np.array_equal(rows_of(out), rows_of(tmp_path / "whole"))


def test_a_job_with_other_settings_or_files_fails(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    job(corpus, tokenizer, tmp_path / "out").run(lambda _: None)
    with pytest.raises(DataError, match=r"holds shards of another job: row_tokens was 17, now 9"):
        job(corpus, tokenizer, tmp_path / "out", sequence_length=8).run(lambda _: None)
    corpus.write_text(corpus.read_text() + '{"text": "more"}\n')
    with pytest.raises(DataError, match="another job: the files are different or were changed"):
        job(corpus, tokenizer, tmp_path / "out").run(lambda _: None)


def test_invalid_utf_8_is_reported_once_per_file(
    tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "a b"}\n{"text": "caf\xe9"}\n{"text": "\xff c"}\n')
    with caplog.at_level(logging.WARNING, "pico_ds"):
        job(path, tokenizer, tmp_path / "out", sequence_length=2).run(lambda _: None)
    assert caplog.text.count("not UTF-8") == 1
    assert "latin.jsonl: 2 lines are not UTF-8 (the first is line 2)" in caplog.text


def test_files_without_text_or_with_invalid_json_fail(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "  "}\n')
    with pytest.raises(DataError, match="no document has any text"):
        job(path, tokenizer, tmp_path / "empty").run(lambda _: None)
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: not valid JSON"):
        job(path, tokenizer, tmp_path / "bad").run(lambda _: None)
    path.write_text('{"input_ids": [1, 2]}\n')
    with pytest.raises(DataError, match="already hold token ids"):
        job(path, tokenizer, tmp_path / "ids").run(lambda _: None)


def test_a_source_can_skip_documents(corpus: Path) -> None:
    source: Source = local_source([str(corpus)], "text", "file")
    every: Iterator[str] = source.read(0)
    assert [*every][7:] == [*source.read(7)]


def test_reading_is_limited_to_a_few_batches_before_writing(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk must not let results fill the memory. A job that is closed early stops immediately."""
    monkeypatch.setattr(shard_preparation, "_BATCH_DOCUMENTS", 1)
    read = 0

    def texts(first: int) -> Iterator[str]:
        nonlocal read
        for read in range(1, 10_001):  # noqa: B007
            yield "a document"

    many = Preparation(Source({}, texts), str(tokenizer), tmp_path / "out", 32, 4, workers=1)
    written = many._tokenized(texts(0), tokenizer)
    next(written)
    time.sleep(0.5)
    assert read <= 6
    started = time.monotonic()
    written.close()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("operation", ["rename", "unlink", "rmdir"])
def test_job_resumes_after_an_interruption_of_the_final_moves(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def write(out: Path) -> None:
        writer = ShardWriter(out, {}, 17, 20)
        if not writer.is_complete:
            for document in _documents(tokenizer)[writer.progress.documents :]:
                writer.add(document)
            writer.finish({})

    write(tmp_path / "whole")
    out, original, calls = tmp_path / "out", getattr(Path, operation), []

    def interrupted(path: Path, *arguments: object) -> Path:
        calls.append(path)
        if len(calls) == (3 if operation == "rename" else 1):
            raise InterruptError
        return original(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, operation, interrupted)
        with pytest.raises(InterruptError):
            write(out)
    write(out)
    assert np.array_equal(rows_of(out), rows_of(tmp_path / "whole"))
    assert (out / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert not (out / ".partial").exists()
