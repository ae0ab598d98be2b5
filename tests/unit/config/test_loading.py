from pathlib import Path

import pytest

from pico_ds.config import ConfigError, RunConfig, dump_config, load_config, parse_config
from pico_ds.config.validation import probable_mistakes


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides)
    return str(caught.value)


def test_empty_file_gives_all_defaults() -> None:
    assert parse_config("") == RunConfig()


def test_overrides_set_any_key_and_take_precedence_over_the_file() -> None:
    overrides = ["training.max_steps=20", "training.lr=3e-4", "monitoring.wandb.mode=disabled", "data.paths=[a, b]"]
    config = parse_config("training: {max_steps: 5}\ndata: {source: files}", overrides)
    assert config.training.max_steps == 20
    assert config.training.lr == 3e-4
    assert config.monitoring.wandb.mode == "disabled"
    assert config.data.paths == ["a", "b"]


def test_dumped_configuration_parses_to_an_equal_one() -> None:
    config = parse_config("training: {lr: 1e-5, adam_eps: 1e-12}\nsmlmt: {n_way: 7}")
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smlmt: {n_wya: 4}", ["smlmt.n_wya: unknown key", "did you mean smlmt.n_way?"]),
        ("training: {inner_steps: 4}", ["training.inner_steps", "did you mean meta.inner_steps?"]),
        ("smltm: {n_way: 4}", ["smltm: unknown key", "did you mean smlmt?"]),
        ("meta: {learner: fomml}", ["meta.learner: got 'fomml'", "did you mean 'fomaml'?"]),
        ("monitoring: {wandb: {projct: x}}", ["monitoring.wandb.projct", "did you mean monitoring.wandb.project?"]),
        ("training: {max_steps: many}", ["training.max_steps", "'many'", "valid integer", "outer steps"]),
        ("training: {max_steps: 2.5}", ["training.max_steps", "2.5", "valid integer"]),
        ("training: {max_steps: true}", ["training.max_steps", "True"]),
        ("training: {lr: -1}", ["training.lr", "-1", "greater than 0"]),
        ("training: {lr: .nan}", ["training.lr", "finite number"]),
        ("training: {precision: fp16}", ["training.precision", "'fp16'", "'fp32' or 'bf16'"]),
        ("smlmt: {hybrid_ratio: 1.5}", ["smlmt.hybrid_ratio", "1.5", "less than or equal to 1"]),
        ("meta: 3", ["meta: got 3", "expected a section", "inner_lr"]),
        ("a: 1\na: 2", ["key 'a' appears twice", "line 1", "line 2"]),
        ("smlmt:\n  n_way: 4\n  n_way: 5", ["'n_way'", "line 2", "line 3"]),
        ("- 1", ["must be a mapping"]),
        ("a: [", ["not valid YAML"]),
        ("model: {d_model: 100}", ["model.d_model: got 100", "attention_n_heads = 12"]),
        ("model: {d_model: 36}", ["head_dim of 3", "odd"]),
        ("model: {attention_n_kv_heads: 5}", ["model.attention_n_kv_heads: got 5"]),
        ("data: {sequence_length: 4096}", ["data.sequence_length: got 4096", "model.max_seq_len = 2048"]),
        ("data: {source: files}", ["data.paths", "at least one"]),
        ("data: {paths: [x]}", ["data.paths", "set data.source to files"]),
        ("smlmt: {context_tokens: 2048}", ["smlmt.context_tokens: got 2048", "max_seq_len"]),
        ("smlmt: {min_word_freq: 9, max_word_freq: 8}", ["smlmt.min_word_freq: got 9"]),
        ("smlmt: {test_word_fraction: 0.95}", ["leaves no word for training"]),
        ("smlmt: {validation_word_fraction: 0}", ["evaluation.word_split", "validation_word_fraction is 0"]),
        ("checkpointing: {run_name: a/b}", ["checkpointing.run_name", "without slashes"]),
        ("checkpointing: {run_name: ..}", ["checkpointing.run_name", "single directory"]),
        ("{[1]: 2}", ["<text>", "key"]),
    ],
)
def test_error_names_the_key_and_the_fix(text: str, expected: list[str]) -> None:
    message = error_of(text)
    for part in expected:
        assert part in message


def test_all_errors_are_reported_together() -> None:
    message = error_of("training: {lr: -1, max_steps: 0}")
    assert "2 problems" in message
    assert "training.lr" in message
    assert "training.max_steps" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {fabric: {precision: bf16-mixed}}", "write training.precision: bf16"),
        (
            "training: {fabric: {num_devices: 4, num_nodes: 2}}",
            "training.fabric.num_nodes: this key is from pico-train or pico-maml",
        ),
        ("training: {fabric: {strategy: x}}", "Lightning Fabric is not used"),
        ("training: {optimization: {lr: 1e-3}}", "write training.lr"),
        ("checkpointing: {auto_resume: true}", "checkpointing.auto_resume: this key is from pico-train or pico-maml"),
        (
            "checkpointing: {training: {auto_resume: true}}",
            "checkpointing.training.auto_resume: this key is from pico-train or pico-maml",
        ),
        ("checkpointing: {hf_checkpoint: {repo_id: x}}", "write checkpointing.hub.repo_id"),
        ("smlmt: {inner_lr: 0.1}", "write meta.inner_lr"),
        ("smlmt: {classifier_head: {num_layers: 4}}", "write meta.head"),
        ("data: {dataloader: {batch_size: 4}}", "write training.global_batch_size"),
        ("monitoring: {logging: {log_every_n_steps: 3}}", "write monitoring.log_every_n_steps"),
        ("evaluation: {paloma: {batch_size: 32}}", "write evaluation.perplexity.data"),
    ],
)
def test_keys_of_pico_train_and_pico_maml_name_their_successor(text: str, expected: str) -> None:
    assert expected in error_of(text)


@pytest.mark.parametrize("override", ["training.max_steps", "=3", "training.max_steps.x=3", "training.max_stepz=3"])
def test_invalid_override_is_an_error(override: str) -> None:
    error_of("training: {max_steps: 3}", override)


def test_missing_file_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_run_shorter_than_its_warmup_gives_a_warning() -> None:
    config = parse_config("training: {max_steps: 20, lr_warmup_steps: 30}\nsmlmt: {warmup_steps: 20}")
    warnings = " ".join(probable_mistakes(config))
    assert "training.lr_warmup_steps = 30" in warnings
    assert "the run will have no meta steps" in warnings
    assert list(probable_mistakes(RunConfig())) == []


def test_date_is_text_and_wrong_encoding_is_a_clear_error(tmp_path: Path) -> None:
    assert parse_config("checkpointing: {run_name: 2024-13-45}").checkpointing.run_name == "2024-13-45"
    (tmp_path / "latin.yaml").write_bytes("# caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_configuration_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        RunConfig().training.lr = 1.0
