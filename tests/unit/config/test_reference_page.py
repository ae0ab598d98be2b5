"""docs/configuration.md is generated from the schema."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from pico_ds.config import RunConfig
from pico_ds.config.loading import all_keys
from pico_ds.config.reference_page import COMMAND, reference

REPOSITORY = Path(__file__).resolve().parents[3]


def sections(section: type[BaseModel] = RunConfig) -> Iterator[type[BaseModel]]:
    yield section
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def test_configuration_page_matches_the_schema() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert page == reference(), f"the page is out of date; update it with: {COMMAND}"


def test_command_named_in_the_page_prints_the_page() -> None:
    script, page = COMMAND.removeprefix("python ").split(" > ")
    result = subprocess.run([sys.executable, REPOSITORY / script], capture_output=True, text=True, check=True)
    assert result.stdout == (REPOSITORY / page).read_text()


def test_every_key_has_a_row_under_its_section() -> None:
    headed = {part.split("\n", 1)[0]: part for part in reference().split("\n## ")[1:]}
    for key in all_keys():
        section, _, name = key.rpartition(".")
        is_section = any(other.startswith(f"{key}.") for other in all_keys())
        assert key in headed if is_section else f"\n| `{name}` | " in headed[section], key


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_and_section_has_a_description(section: type[BaseModel]) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    "row",
    [
        "| `lr` | number above 0 to 1,000,000,000 | `0.0003` | peak learning rate of AdamW |",
        "| `n_way` | integer from 2 to 1,000,000,000 or list of 2 integers from 1 to 1,000,000,000 | `5` |",
        "| `resume` | integer from 0 to 1,000,000,000 or string | `auto` |",
        "| `readouts` | list of `fim`, `pre`, `fimpre`, `mask`, `last`, `mean` or `null` | `null` |",
        "| `adam_beta1` | number above 0 below 1 | `0.9` |",
        "cudnn, sdpa_\\* and math are part of torch",
        "| `keep_weights` | boolean | `true` |",
    ],
)
def test_allowed_values_are_described_in_words(row: str) -> None:
    assert row in reference()
