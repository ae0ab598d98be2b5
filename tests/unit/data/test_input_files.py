"""The table in docs/data.md: every reader of files applies the same rules to a row."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pico_ds.config import DataConfig, PerplexityConfig
from pico_ds.data.shards.shard_preparation import local_source
from pico_ds.data.text.documents import read_documents
from pico_ds.data.text.perplexity_texts import read_texts
from pico_ds.errors import DataError

BOM = b"\xef\xbb\xbf"


def read_everywhere(path: Path) -> list[object]:
    """The documents of a file. Raise unless training, shard preparation and perplexity evaluation agree."""
    documents = [*read_documents(DataConfig(source="files", paths=[str(path)]))]
    perplexity_texts = [text for _, text in read_texts(PerplexityConfig(data=str(path)))]
    expected, actual = (
        [text.tolist() if isinstance(text, np.ndarray) else text for text in texts]
        for texts in (documents, perplexity_texts)
    )
    assert [text.strip() if isinstance(text, str) else text for text in actual] == expected
    if all(isinstance(text, str) for text in expected):
        assert [*local_source([str(path)], "text", "file").read(0)] == expected
    return expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bom.jsonl", BOM + b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        ("bom.txt", BOM + b"one", ["one"]),
        ("bom_only.jsonl", BOM + b'\n{"text": "one"}\n', ["one"]),
        ("crlf.jsonl", b'{"text": "one"}\r\n\r\n{"text": "two"}\r\n', ["one", "two"]),
        ("null.jsonl", b'{"text": "one"}\n{"text": null, "id": 3}\n', ["one"]),
        ("empty.jsonl", b'{"text": ""}\n{"text": "one"}\n\n', ["one"]),
        ("tokens.jsonl", b'{"input_ids": [1, 2]}\n{"input_ids": []}\n{"input_ids": null}\n', [[1, 2]]),
        ("both.jsonl", b'{"input_ids": [1], "text": "one"}\n{"input_ids": null, "text": "two"}\n', [[1], "two"]),
        ("bytes.jsonl", b'{"text": "bad \xff byte"}\n', ["bad \ufffd byte"]),
        ("surrogate.jsonl", b'{"text": "half \\ud800"}\n', ["half ?"]),
    ],
)
def test_every_reader_reads_the_same_documents(
    name: str, content: bytes, expected: list[object], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_everywhere(tmp_path / name) == expected


@pytest.mark.parametrize(
    "text",
    [
        pa.array(["one", None, "", "two"]),
        pa.array(["one", None, "", "two"], pa.large_string()),
        pa.array(["one", None, "", "two"], pa.string_view()),
        pa.array(["one", None, "", "two"]).dictionary_encode(),
    ],
    ids=["string", "large_string", "string_view", "dictionary"],
)
def test_a_text_column_may_have_any_string_type(text: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert read_everywhere(tmp_path / "a.parquet") == ["one", "two"]


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.uint16()), pa.list_(pa.int64(), 2)])
def test_a_token_column_may_have_any_list_of_integers_type(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"input_ids": pa.array([[1, 2], [3, 4]], kind)}), tmp_path / "a.parquet")
    assert read_everywhere(tmp_path / "a.parquet") == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), r"a\.jsonl is UTF-16; convert it to UTF-8: iconv -f UTF-16"),
        ("a.txt", "text".encode("utf-32"), r"a\.txt is UTF-32"),
        ("a.jsonl", b'{"input_ids": [1, null]}', r"line 1: 'input_ids' holds None at position 1, expected a token id"),
        ("a.jsonl", b'{"input_ids": [1, -2]}', "'input_ids' holds -2 at position 1"),
        ("a.jsonl", b'{"input_ids": [1, true]}', "'input_ids' holds True at position 1"),
        (
            "a.jsonl",
            b'{"input_ids": [1, 99999999999999999999]}',
            "'input_ids' holds 99999999999999999999 at position 1",
        ),
        ("a.jsonl", b'{"input_ids": "1 2"}', "'input_ids' is '1 2', expected a list of token ids"),
        ("a.jsonl", b'{"body": "x"}', r"got body \(str\); set .*text_column to the field"),
        ("a.jsonl", b"[" * 100_000, "not valid JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_an_error_names_the_unreadable_row(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(DataConfig(source="files", paths=[str(path)])))
    with pytest.raises(DataError, match=message):
        list(read_texts(PerplexityConfig(data=str(path))))


def test_an_error_names_the_row_with_a_null_token_id(tmp_path: Path) -> None:
    tokens = pa.array([[1, 2], [3, None]], pa.list_(pa.int64()))
    pq.write_table(pa.table({"input_ids": tokens}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet, row 1: 'input_ids' holds null at position 1, expected a token id"
    ):
        read_everywhere(tmp_path / "a.parquet")


@pytest.mark.parametrize(("tokens", "kind"), [([1, -2], pa.int64()), ([1, 2**64 - 1], pa.uint64())])
def test_an_error_names_the_row_with_an_invalid_token_id(tokens: list[int], kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"input_ids": pa.array([[1], tokens], pa.list_(kind))}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"row 1: 'input_ids' holds {tokens[1]} at position 1, expected a token id"):
        read_everywhere(tmp_path / "a.parquet")


def test_a_parquet_row_without_token_ids_is_read_as_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input_ids": [[1], None, None], "text": ["one", "two", None]}), tmp_path / "a.parquet")
    assert read_everywhere(tmp_path / "a.parquet") == [[1], "two"]


def test_invalid_utf_8_in_parquet_is_replaced(tmp_path: Path) -> None:
    broken = pa.array([b"bad \xff byte", b"good"], pa.binary())
    text = pa.StringArray.from_buffers(2, *broken.buffers()[1:], broken.buffers()[0])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert read_everywhere(tmp_path / "a.parquet") == ["bad \ufffd byte", "good"]


def test_an_error_names_the_parquet_file_with_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {number}" for number in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        read_everywhere(path)


def test_a_numeric_text_column_fails_with_the_setting_to_change(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"column 'text' holds int64, expected strings; set evaluation\.perplexity\.text"
    ):
        list(read_texts(PerplexityConfig(data=str(tmp_path / "a.parquet"))))


def test_domains_are_read_with_the_text(tmp_path: Path) -> None:
    rows = [{"text": "one", "source": "x"}, {"text": "two", "source": None}, {"text": "three"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        domains = [domain for domain, _ in read_texts(PerplexityConfig(data=str(tmp_path / name)))]
        assert domains == ["x", name[0], name[0]]
