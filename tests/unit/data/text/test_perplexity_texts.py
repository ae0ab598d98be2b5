"""Texts for the perplexity evaluation."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from pico_ds.config import PerplexityConfig
from pico_ds.data.text.perplexity_texts import read_texts
from pico_ds.errors import DataError


@pytest.fixture(autouse=True)
def _test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(path: object, **options: str) -> list[tuple[str, object]]:
    return list(read_texts(PerplexityConfig(data=str(path), **options)))


def test_the_domain_is_a_column_or_the_file_name(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "one", "source": "x"}, {"text": ""}, {"text": "two", "source": "y"}])
    assert read(tmp_path / "a.jsonl") == [("x", "one"), ("y", "two")]
    jsonl(tmp_path / "b.jsonl", [{"text": "three"}])
    (tmp_path / "c.txt").write_text("four\n\nstill four\n")
    assert read(tmp_path / "b.jsonl") == [("b", "three")]
    assert read(tmp_path / "?.*") == [("x", "one"), ("y", "two"), ("b", "three"), ("c", "four\n\nstill four\n")]


def test_column_names_can_be_configured(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"body": "one", "source": "x", "kind": "z"}])
    assert read(path, text_column="body", domain_column="kind") == [("z", "one")]


def test_token_ids_are_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]], "text": ["ignored"]}).to_parquet(path)
    ((domain, ids),) = read(path)
    assert domain == "a"
    assert isinstance(ids, np.ndarray)
    assert ids.tolist() == [1, 2, 3]


def test_every_subset_of_a_dataset_is_a_domain(tmp_path: Path) -> None:
    """A local directory is read like a dataset on the hub."""
    for name in ("news", "code"):
        (tmp_path / "set" / name).mkdir(parents=True)
        jsonl(tmp_path / "set" / name / "val.jsonl", [{"text": f"of {name}"}])
    configs = [
        {"config_name": name, "data_files": [{"split": "val", "path": f"{name}/val.jsonl"}]}
        for name in ("news", "code")
    ]
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert sorted(read(tmp_path / "set")) == [("code", "of code"), ("news", "of news")]
    assert read(tmp_path / "set", subset="code") == [("code", "of code")]
    with pytest.raises(DataError, match=r"cannot be read as a dataset on the hub: .*test"):
        read(tmp_path / "set", split="test")


def test_a_row_without_a_domain_belongs_to_its_subset(tmp_path: Path) -> None:
    jsonl(tmp_path / "val.jsonl", [{"text": "one", "source": "news"}, {"text": "two", "source": None}])
    config = [{"config_name": "all", "data_files": [{"split": "val", "path": "val.jsonl"}]}]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(config)}\n---\n")
    assert read(tmp_path) == [("news", "one"), ("all", "two")]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('{"txt": "one"}', "a.jsonl", r"got txt \(str\); set evaluation\.perplexity\.text_column to the field"),
        ("{", "a.jsonl", r"a\.jsonl, line 1: not valid JSON"),
        ("one", "a.csv", r"a\.csv ends in '\.csv'; files must be \.txt, \.jsonl or \.parquet"),
        ("no parquet", "a.parquet", r"a\.parquet cannot be read as parquet"),
        ("", "a.jsonl", r"a\.jsonl is empty"),
        ('{"text": 5}', "a.jsonl", r"a\.jsonl, line 1: expected an object with a text in 'text' .* got text \(int\)"),
        ('{"text": ["one", "two"]}', "a.jsonl", r"line 1: expected an object with a text .* got text \(list\)"),
    ],
)
def test_an_error_names_the_bad_file(tmp_path: Path, content: str, name: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_data_fails(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches"):
        read(tmp_path / "*.jsonl")
    with pytest.raises(DataError, match=r"'nobody/nothing' is not a local file, and cannot be read as a dataset"):
        read("nobody/nothing")
