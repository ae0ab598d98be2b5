"""Damaged tokenizer directories fail with a clear message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pico_ds.data.text.tokenizer import digest_of_file, import_tokenizer, load_tokenizer, train_tokenizer
from pico_ds.errors import DataError


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undamaged")
    train_tokenizer(["a few words to learn from"], 300, directory)
    return directory


@pytest.fixture
def tokenizer(undamaged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undamaged, tmp_path / "tokenizer"))


def write(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


def make_circular_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    "damage",
    [
        write("{"),
        write("[]"),
        write("5"),
        write('{"model": {"type": "BPE"}}'),
        write("words"),
        make_circular_link,
    ],
    ids=["truncated", "a list", "a number", "no vocabulary", "not JSON", "symlink loop"],
)
def test_a_damaged_tokenizer_fails(tokenizer: Path, damage: Callable[[Path], None], tmp_path: Path) -> None:
    damage(tokenizer / "tokenizer.json")
    with pytest.raises(DataError, match=r"data\.tokenizer: cannot load"):
        import_tokenizer(str(tokenizer), tmp_path / "imported")
    with pytest.raises(DataError, match="cannot read a tokenizer"):
        load_tokenizer(tokenizer)


@pytest.mark.parametrize(
    "ids",
    [
        [],
        5,
        {},
        {"mask_id": 1},
        {"mask_id": "1", "pad_id": 2, "end_of_text_id": 3},
        {"mask_id": 10**9, "pad_id": 2, "end_of_text_id": 3},
    ],
)
def test_special_ids_that_are_not_in_the_tokenizer_fail(tokenizer: Path, ids: object) -> None:
    (tokenizer / "special_token_ids.json").write_text(json.dumps(ids))
    with pytest.raises(DataError, match="must contain end_of_text_id, mask_id, pad_id, each an id of the tokenizer"):
        load_tokenizer(tokenizer)


def test_the_digest_of_a_damaged_file_fails(tokenizer: Path) -> None:
    assert digest_of_file(tokenizer / "none") is None
    (tokenizer / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot read a tokenizer"):
        digest_of_file(tokenizer / "tokenizer.json")
