"""Any input gives a valid result or a clear error within 10 seconds.

The slow tier tries 5,000 examples of each kind (about 10 minutes), the default tier 60 (about 20 seconds).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pico_ds.compat.config_migration import migrate
from pico_ds.config import RunConfig, load_config, parse_config
from pico_ds.config.deepspeed_config import load_deepspeed_config, resolve_deepspeed_config
from pico_ds.config.dotenv import load_environment
from pico_ds.config.loading import all_keys
from pico_ds.data.input_files import Columns, read_rows
from pico_ds.engine.zero_checks import check_zero_settings
from pico_ds.errors import PicoError
from pico_ds.evaluation.conll_files import read_conll
from pico_ds.planning.run_plan import make_plan
from pico_ds.tasks.sentence_files import read_sentences

#: examples of each kind
COUNTS = [60, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
STAGE_1: dict[str, Any] = {"zero_optimization": {"stage": 1}}


def leaves() -> list[str]:
    keys = [*all_keys()]
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


ODD_NUMBERS = st.sampled_from([0, -1, 1, 2, 10**6, 10**9, 10**12, 10**30, -(10**30), 1e300, 5e-324, 0.5, 1e9, True])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    ODD_NUMBERS,
    st.sampled_from(
        ["", " ", "auto", "AUTO", "never", "[x]", "../..", "a\nb", "\ud800", "x" * 300, "head", "\0", "(("]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEY_VALUES = st.one_of(VALUES, st.lists(ODD_NUMBERS, min_size=2, max_size=2))


def tree_of(changes: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


def check(function: Callable[[], Any]) -> Any:
    """Call a function. It may raise a PicoError with a short message."""
    try:
        return function()
    except PicoError as error:
        text = str(error)
        assert text.strip()
        assert "Traceback" not in text
        assert len(text) < 20_000
        return None


def run(property_: Callable[..., None], n_examples: int, *strategies: Any) -> None:
    """Check a property for `n_examples` generated values, which are equal in every run."""
    limits = settings(
        max_examples=n_examples,
        deadline=10_000,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    limits(given(*strategies)(property_))()


def plan_of(config: RunConfig) -> None:
    make_plan(config, STAGE_1, config.model.vocab_size or 4096, world_size=2)
    resolve_deepspeed_config(STAGE_1, config, 2)


@pytest.mark.parametrize("n_examples", COUNTS)
def test_any_value_of_any_key_is_planned_or_a_clear_error(n_examples: int) -> None:
    def property_(changes: dict[str, Any]) -> None:
        try:
            text = yaml.safe_dump(tree_of({"model.n_layers": 1, **changes}), allow_unicode=True)
        except yaml.YAMLError:
            text = json.dumps(tree_of(changes))
        config = check(lambda: parse_config(text))
        if config is not None:
            check(lambda: plan_of(config))

    run(property_, n_examples, st.dictionaries(st.sampled_from(leaves()), KEY_VALUES, min_size=1, max_size=3))


@pytest.mark.parametrize("n_examples", COUNTS)
def test_any_number_in_the_schema_is_planned_or_a_clear_error(n_examples: int) -> None:
    """Values have the right type, so most of them pass the first checks."""

    def numbers(section: type[BaseModel], path: str = "") -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += numbers(field.annotation, f"{path}{name}.")
            elif isinstance(field.default, int | float) and not isinstance(field.default, bool):
                found.append(f"{path}{name}")
        return found

    def property_(changes: dict[str, Any]) -> None:
        config = check(lambda: parse_config(json.dumps(tree_of({"model.n_layers": 1, **changes}))))
        if config is not None:
            check(lambda: plan_of(config))

    sizes = st.sampled_from([1, 2, 3, 8, 1001, 2**17, 10**6, 2**24, 10**9, 0.5, 1e-9])
    run(property_, n_examples, st.dictionaries(st.sampled_from(numbers(RunConfig)), sizes, min_size=1, max_size=4))


@pytest.mark.parametrize("n_examples", COUNTS)
def test_any_override_is_parsed_or_a_clear_error(n_examples: int) -> None:
    def property_(key: str, value: str) -> None:
        check(lambda: parse_config("", [f"{key}={value}"]))

    run(property_, n_examples, st.sampled_from(leaves()) | st.text(max_size=20), st.text(max_size=60))


YAML_TEXTS = [
    b"training: {lr: 1e-3, seed: 5}\nmodel: &m {d_model: 96}\n",
    b"a: &a [*a]\n",
    b"a: &a {b: *a}\n",
    b"a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    b"\0",
    b"[" * 2000,
    b"? {a: b}\n: c\n",
    b"!!python/object/apply:os.system ['true']\n",
    b"seed: 0x" + b"f" * 5000,
    b"seed: " + b"9" * 5000,
    b"".join(b"x%d: &x%d [%s]\n" % (i, i, b", ".join([b"*x%d" % (i - 1)] * 9 if i else [b"1"] * 9)) for i in range(12)),
]


def damaged(examples: list[bytes]) -> st.SearchStrategy[bytes]:
    """Generate any bytes, or a valid file with a part replaced or removed."""

    def change(example: bytes, position: float, length: int, part: bytes) -> bytes:
        start = int(position * len(example))
        return example[:start] + part + example[start + length :]

    positions = st.floats(0, 1)
    changed = st.builds(change, st.sampled_from(examples), positions, st.integers(0, 40), st.binary(max_size=12))
    return st.one_of(st.binary(max_size=200), st.sampled_from(examples), changed)


def parquet(**columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


DEEPSPEED_TEXTS = [
    b'{"zero_optimization": {"stage": 1, "reduce_bucket_size": 5}, "aio": {"queue_depth": 8}}',
    b'{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}',
    b'{"zero_optimization": {"stage": true}}',
    b'{"zero_optimization": {"stage": 2, "cpu_offload": true}, "communication_data_type": "fp8"}',
    b'{"zero_optimization": {"stage": 2}, "aio": "x"}',
    b"[" * 100_000,
    b'{"a": ' * 50_000,
    b"9" * 5000,
]
ROWS = [
    b'{"text": "a man, a plan", "source": "x"}\n{"input_ids": [1, 2]}\n',
    b'{"text": 5}\n',
    b"[" * 5000,
    b"\xff\xfe{",
]
CONLL = [b"# id = 1\n1\tJohn\tB-PER\n2\tSmith\tI-PER\n\n1\tran\tO\n", b"a B-\n", b"x\n\ny"]
SENTENCES = [
    b'{"text": "one two", "label": "a"}\n{"text": "three", "label": "b"}\n',
    b'{"text": "one", "word": "one"}\n',
]
PARQUET = [parquet(text=["a man", None, "a plan"]), parquet(input_ids=[[1, 2], [3]]), parquet(other=[1.5])]
# a column name is not UTF-8
PARQUET.append(PARQUET[1].replace(b"element", b"\x80lement"))


def read_deepspeed(path: Path) -> None:
    content = load_deepspeed_config(path)
    check_zero_settings(content["zero_optimization"], path.name)
    resolve_deepspeed_config(content, RunConfig(), 2, path.name)


def read_environment(path: Path) -> None:
    with patch.dict(os.environ):
        load_environment(path)


READERS: dict[str, tuple[str, list[bytes], Callable[[Path], Any]]] = {
    "yaml": ("config.yaml", YAML_TEXTS, load_config),
    "yaml of pico-maml": ("config.yaml", YAML_TEXTS, lambda path: migrate(path.read_text(errors="replace"))),
    "json of deepspeed": ("zero.json", DEEPSPEED_TEXTS, read_deepspeed),
    ".env": (".env", [b"A=5\nexport B='x y'\n", b"A=\0", b"=5", b"\xff"], read_environment),
    "jsonl": ("rows.jsonl", ROWS, lambda path: [*read_rows(path, Columns())]),
    "txt": ("rows.txt", [b"a man\n\na plan\n", b"\xff\xfea\0"], lambda path: [*read_rows(path, Columns())]),
    "parquet": ("rows.parquet", PARQUET, lambda path: [*read_rows(path, Columns())]),
    "conll": ("ner.conll", CONLL, read_conll),
    "sentences": ("sentences.jsonl", SENTENCES, read_sentences),
}


@pytest.mark.parametrize("n_examples", COUNTS)
@pytest.mark.parametrize("kind", READERS)
def test_any_file_content_is_read_or_a_clear_error(kind: str, n_examples: int, tmp_path: Path) -> None:
    name, examples, read = READERS[kind]

    def property_(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        check(lambda: read(tmp_path / name))

    for example in examples:
        property_(example)
    run(property_, n_examples, damaged(examples))
