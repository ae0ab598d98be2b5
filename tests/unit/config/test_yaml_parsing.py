"""YAML 1.2, and conversion of scalars to the type of their key."""

import math
import re
from typing import Any

import pytest
import yaml

from pico_ds.config import ConfigError, dump_config, parse_config
from pico_ds.config.yaml_parsing import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("010", 10),
        ("0o10", 8),
        ("0xfF", 255),
        ("-3", -3),
        ("1_000", 1000),
        ("1e5", 100000.0),
        ("3e-4", 3e-4),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        # text in YAML 1.2, and not in YAML 1.1
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("1:30", "1:30"),
        ("0b11", "0b11"),
        ("2024-01-02", "2024-01-02"),
        ("1__0", "1__0"),
        ("_1", "_1"),
        ("=", "="),
        ("'12'", "12"),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}", "x")["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    "value", ["off", "yes", "010", "1e5", "1:30", "0o7", "null", "", "~", ".nan", "12", "2024-01-02", "=", "<<", "a: b"]
)
def test_dumped_text_is_text_in_yaml_1_1_and_1_2(value: str) -> None:
    assert parse_yaml(dump_yaml([value, {value: value}]), "x") == [value, {value: value}]
    assert yaml.safe_load(dump_yaml([value])) == [value]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.validate=off", "off"),
        ("training.seed=010", 10),
        ("training.max_steps=1e5", 100_000),
        ("training.max_steps=2.0", 2),
        ("smlmt.n_way=[2, 1e1]", [2, 10]),
        ("training.lr=1", 1.0),
        ("checkpointing.run_name=123456", "123456"),
        ("checkpointing.run_name=1e5", "1e5"),
        ("checkpointing.run_name=007", "007"),
        ("checkpointing.run_name=null", None),
        ("checkpointing.resume=1e1", 10),
        ("learning_dynamics.layer_suffixes=[1, 2.50]", ["1", "2.50"]),
    ],
)
def test_value_is_converted_to_the_type_of_its_key(override: str, value: Any) -> None:
    key = override.partition("=")[0]
    section, name = key.split(".")
    in_a_file = override.replace(".", ": {", 1).replace("=", ": ", 1) + "}"
    for config in (parse_config("", [override]), parse_config(in_a_file)):
        found = getattr(getattr(config, section), name)
        assert (type(found), found) == (type(value), value)
        assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps=1:30", "training.max_steps: got '1:30'; input should be a valid integer"),
        ("training.max_steps=2.5", "training.max_steps: got 2.5; input should be a valid integer"),
        ("training.max_steps=.inf", "training.max_steps: got inf; input should be a valid integer"),
        ("meta.multi_step_loss=yes", "meta.multi_step_loss: got 'yes'; input should be a valid boolean"),
        (
            "checkpointing.run_name=",
            "override 'checkpointing.run_name=' has no value; use checkpointing.run_name=null",
        ),
        ("checkpointing.run_name=''", "checkpointing.run_name: got ''; set a value, or remove the key"),
        ("checkpointing.runs_dir=' '", "checkpointing.runs_dir: got ' '; set a value, or remove the key"),
        ("data.tokenizer=''", "data.tokenizer: got ''; set a value, or remove the key"),
        ("model.init_from=''", "model.init_from: got ''; set a value, or remove the key"),
        ("meta.adapt=''", "meta.adapt: got ''; set a value, or remove the key"),
        ("checkpointing.resume=''", "checkpointing.resume: got ''; set a value, or remove the key"),
        ("monitoring.wandb.project=''", "monitoring.wandb.project: got ''; set a value, or remove the key"),
        ("data.paths=['']", "data.paths: got [''], which contains an empty string"),
        ("checkpointing.resume=AUTO", "checkpointing.resume: got 'AUTO'; write auto in lower case"),
        ("evaluation.readouts=[]", "evaluation.readouts: got an empty list; list a readout"),
        (
            "evaluation.readouts=[fim, pre, fim]",
            "evaluation.readouts: got ['fim', 'pre', 'fim']; list each readout once",
        ),
        (f"checkpointing.run_name={'é' * 130}", "checkpointing.run_name: got a name of 260 bytes"),
        (
            'checkpointing.run_name="a\\nb"',
            "checkpointing.run_name: got 'a\\nb'; the name must be printable",
        ),
        ("training.seed=" + "9" * 5000, "the integer at line 1 has 5000 characters; the limit is 40"),
        ("data.paths=" + "[" * 3000, "nested too deeply"),
        ("checkpointing.run_name=#1", "override 'checkpointing.run_name=#1' has no value"),
        ("training.seed=!!int [1]", "is not valid YAML"),
        ("training.lr=!!float {}", "is not valid YAML"),
        ("training.seed=!!bool maybe", "is not valid YAML"),
    ],
)
def test_invalid_value_is_an_error(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("", [override])
    assert message in str(caught.value)


def test_alias_is_converted_for_each_of_its_keys() -> None:
    config = parse_config("checkpointing: {run_name: &value 42}\ntraining: {seed: *value}")
    assert (config.checkpointing.run_name, config.training.seed) == ("42", 42)


def test_legacy_files_are_read_as_yaml_1_1() -> None:
    assert parse_yaml("[yes, off, 010, 3e-4, 2024-01-02]", "x", is_yaml_1_1=True) == [
        True,
        False,
        8,
        3e-4,
        "2024-01-02",
    ]


def test_snapshots_without_modules_are_an_error() -> None:
    overrides = ["learning_dynamics.layer_suffixes=[]", "learning_dynamics.save_every_n_steps=5"]
    with pytest.raises(ConfigError, match=r"learning_dynamics.layer_suffixes: got an empty list"):
        parse_config("", overrides)
    parse_config("", overrides[:1])


#: each line has nine aliases of the line before
BOMB = "x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"x{line}: &x{line} [{', '.join([f'*x{line - 1}'] * 9)}]\n" for line in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: \0", "is not valid YAML"),
        ("a: &a [*a]", "the value at line 1 contains itself through an alias"),
        (BOMB, "its aliases expand to 3.57e+11 values"),
    ],
)
@pytest.mark.parametrize("is_yaml_1_1", [False, True])
def test_recursive_and_exploding_aliases_are_errors(text: str, message: str, is_yaml_1_1: bool) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_yaml(text, "a text", is_yaml_1_1=is_yaml_1_1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.hang_timeout_seconds=1e300"], "less than or equal to 31536000"),
        (["training.seed=" + "9" * 30], "less than or equal to 9223372036854775807"),
        (["model.n_layers=10000000000000"], "less than or equal to 1000"),
        (["meta.tasks_per_step=1000000000000"], "less than or equal to 1000000"),
        (["training.global_batch_size=1000000000000"], "less than or equal to 1000000000"),
        (["training.global_batch_size=1000000000"], "128,000,000,000 tokens in an autoregressive step"),
        (["meta.tasks_per_step=1000000", "smlmt.k_shot=5000"], "tokens in a meta step; the limit is 4,294,967,296"),
        (["model.d_model=1000000", "model.n_layers=1000", "model.attention_n_heads=4"], "parameters; the limit is"),
        (["smlmt.k_shot=20000"], "exceeds smlmt.max_word_freq = 10000"),
    ],
)
def test_too_large_sizes_are_errors(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("", overrides)
    assert message in str(caught.value)
