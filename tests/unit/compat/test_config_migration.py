"""Migration of pico-train and pico-maml configurations. No key is dropped silently."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pico_ds.compat.config_migration import migrate
from pico_ds.compat.legacy_configs import PICO_MAML, PICO_TRAIN
from pico_ds.config import ConfigError, parse_config
from pico_ds.config.legacy_keys import KEPT_KEYS, MOVED_KEYS, moved, table_of_keys
from pico_ds.config.loading import all_keys

REPOSITORY = Path(__file__).resolve().parents[3]

#: all fields of the dataclasses in pico-train's src/config
PICO_TRAIN_KEYS = """
model: model_type d_model n_layers vocab_size batch_size max_seq_len attention_n_heads attention_n_kv_heads
model: activation_hidden_dim norm_eps position_emb_theta
data.dataset: name
data.dataloader: batch_size
data.tokenizer: name vocab_size
training: max_steps
training.fabric: num_nodes num_devices precision accelerator
training.optimization: optimizer lr lr_scheduler lr_warmup_steps gradient_accumulation_steps
checkpointing: run_name runs_dir checkpoints_dir logs_dir fabric_checkpoint_dir fabric_checkpoint_filename
checkpointing: learning_dynamics_dir save_every_n_steps save_to_hf
checkpointing.hf_checkpoint: repo_id collection_slug
checkpointing.training: auto_resume
checkpointing.evaluation: eval_results_dir
checkpointing.learning_dynamics: layer_suffixes sequence_idx batch_size eval_data
evaluation: metrics
evaluation.paloma: dataset_name dataset_split max_length batch_size
monitoring.logging: log_level log_every_n_steps
monitoring: save_to_wandb save_to_picolabs
monitoring.wandb: project entity
monitoring.pico_report: lab_hash auto_commit
"""
#: additional keys of the versions of pico-maml, in dataclasses or in files of configs/
PICO_MAML_KEYS = """
checkpointing: save_checkpoint_repo_id hf_collection_slug auto_resume
checkpointing.evaluation: load_checkpoint_path
evaluation.universal_ner: dataset_name dataset_config dataset_split batch_size
monitoring.experiment_tracker: framework wandb_project wandb_entity
smlmt: enabled hybrid_ratio min_token_freq max_token_freq inner_steps inner_lr support_size n_way k_shot
smlmt.classifier_head: hidden_dim dropout num_layers init_method
smlmt: probability num_classes support_per_class query_per_class sentences vocabulary max_length hidden_dims dropout
smlmt: weight_decay learn_inner_lr smlmt_weight
training: inner_learning_rate num_inner_steps meta_batch_size num_tasks
training.fabric: devices strategy
training.optimization: gradient_checkpointing
data.dataset: split cache_dir
"""


def keys_of(listing: str) -> list[str]:
    lines = [line.split(": ") for line in listing.strip().splitlines()]
    return [f"{section}.{key}" for section, keys in lines for key in keys.split()]


#: pico-train's demo, shortened
PICO_TRAIN_YAML = """
data: {dataloader: {batch_size: 32}}
checkpointing:
  run_name: demo-1
  save_every_n_steps: 50
  save_to_hf: true
  hf_checkpoint: {repo_id: lab/demo}
  learning_dynamics: {batch_size: 16}
model: {d_model: 96, activation_hidden_dim: 384}
evaluation: {paloma: {batch_size: 32}}
monitoring:
  save_to_wandb: true
  wandb: {project: demo, entity: ""}
  logging: {log_every_n_steps: 10}
training:
  max_steps: 100
  optimization: {lr: 1e-3, lr_warmup_steps: 30, gradient_accumulation_steps: 2}
  fabric: {num_devices: 4}
"""
#: a configuration with the keys of the last version of pico-maml
PICO_MAML_YAML = """
checkpointing: {run_name: maml-2, save_to_hf: false, auto_resume: false, learning_dynamics: {layer_suffixes: []}}
model: {d_model: 96, activation_hidden_dim: 384, max_seq_len: 512}
training:
  max_steps: 20000
  optimization: {gradient_accumulation_steps: 4, gradient_checkpointing: true}
  fabric: {precision: 32-true, devices: 4, num_nodes: 2}
smlmt:
  enabled: true
  hybrid_ratio: 0.4
  inner_steps: 7
  inner_lr: 0.01
  min_token_freq: 10
  max_token_freq: -1
  n_way: 32
  k_shot: 4
  classifier_head: {num_layers: 3, hidden_dim: 64, dropout: 0, init_method: xavier}
data: {dataset: {name: pico-lm/pretokenized-dolma, split: train}, dataloader: {batch_size: 250}}
"""
#: a configuration with the keys of an earlier version of pico-maml
EARLY_YAML = """
checkpointing: {save_checkpoint_repo_id: lab/maml, learning_dynamics: {layer_suffixes: [feed_forward.w_2]}}
smlmt:
  enabled: true
  probability: 0.2
  num_classes: 3
  support_per_class: 10
  query_per_class: 5
  smlmt_weight: 1
  max_length: 64
  hidden_dims: [96, 96]
monitoring: {experiment_tracker: {framework: wandb, wandb_project: pico}}
"""


@pytest.mark.parametrize("key", [*keys_of(PICO_TRAIN_KEYS), *keys_of(PICO_MAML_KEYS)])
def test_every_legacy_key_is_known(key: str) -> None:
    entry = moved(key)
    assert (entry is None) == (key in KEPT_KEYS)
    # the entry is for this key or for its section
    assert key in KEPT_KEYS or key in MOVED_KEYS or key.rsplit(".", 1)[0] + ".*" in MOVED_KEYS


def test_table_maps_existing_legacy_keys_to_existing_keys() -> None:
    ours = {*all_keys()}
    assert {*KEPT_KEYS} <= ours
    theirs = {*keys_of(PICO_TRAIN_KEYS), *keys_of(PICO_MAML_KEYS)}
    for key, entry in MOVED_KEYS.items():
        assert {*entry.to} <= ours, key
        assert key.endswith(".*") or key in theirs, key
        assert entry.convert is None or len(entry.to) == 1, key
    assert {*PICO_TRAIN, *PICO_MAML} <= theirs


def test_migration_page_contains_the_table() -> None:
    page = (REPOSITORY / "docs" / "migrating.md").read_text()
    assert table_of_keys() in page, "the table is out of date; update it with: python scripts/migrate_config.py --table"


def test_pico_train_config_is_converted() -> None:
    migration = migrate(PICO_TRAIN_YAML, "old.yaml")
    config = migration.config
    training, checkpointing = config.training, config.checkpointing
    assert (training.global_batch_size, training.micro_batch_size) == (32, 32 // (4 * 2))
    assert (training.lr, training.lr_schedule, training.final_lr_ratio) == (1e-3, "linear", 0.0)
    assert (training.precision, training.weight_decay, training.max_grad_norm) == ("bf16", 0.01, 0.0)
    assert (checkpointing.hub.repo_id, checkpointing.hub.revision) == ("lab/demo", "demo-1")
    assert (config.learning_dynamics.save_every_n_steps, config.learning_dynamics.n_rows) == (50, 16)
    assert (config.smlmt.hybrid_ratio, config.evaluation.n_tasks) == (0, 0)
    assert config.evaluation.perplexity.data == "pico-lm/pretokenized-paloma-tinsy"
    assert (config.monitoring.wandb.mode, config.monitoring.wandb.project) == ("auto", "demo")
    assert config.monitoring.wandb.entity is None
    # the old file does not set these, so the defaults of pico-train apply
    assert (config.model.n_layers, config.model.vocab_size, config.data.sequence_length) == (12, 50304, 2048)
    assert "# Devices of the old run: torchrun --nnodes 1 --nproc_per_node 4" in migration.text
    assert "  lr: 0.001  # training.optimization.lr\n" in migration.text


def test_pico_maml_config_is_converted() -> None:
    migration = migrate(PICO_MAML_YAML, "old.yaml")
    config = migration.config
    meta, smlmt = config.meta, config.smlmt
    assert (meta.learner, meta.head, smlmt.readout) == ("anil", "vocab", "mask")
    assert (meta.head_inner_lr, meta.inner_steps, meta.tasks_per_step) == (0.01, 7, 4 * 8)
    assert (meta.vocab_head_layers, meta.vocab_head_width, meta.vocab_head_dropout) == (3, 64, 0.0)
    assert (smlmt.hybrid_ratio, smlmt.n_way, smlmt.k_shot) == (0.4, 32, 4)
    assert (smlmt.min_word_freq, smlmt.max_word_freq) == (10, 10**9)
    assert (config.training.precision, config.training.activation_checkpointing) == ("fp32", "block")
    assert (config.data.sequence_length, config.model.max_seq_len) == (512, 512)
    assert config.checkpointing.resume == "never"
    assert config.learning_dynamics.save_every_n_steps is None
    assert any("used 224 rows; pico_ds uses 250" in note for note in migration.notes)
    # keys that are left out are named, also at the top of the file
    assert any(note.startswith("smlmt.classifier_head.init_method: 'xavier' is left out") for note in migration.notes)
    assert all(f"# - {note}" in migration.text for note in migration.notes)


def test_early_pico_maml_config_is_converted() -> None:
    config = migrate(EARLY_YAML).config
    assert (config.smlmt.n_way, config.smlmt.k_shot, config.smlmt.q_query) == (3, 10, 5)
    assert (config.smlmt.hybrid_ratio, config.smlmt.context, config.smlmt.context_tokens) == (0.2, "sentence", 64)
    assert (config.meta.vocab_head_layers, config.meta.vocab_head_width) == (3, 96)
    assert (config.checkpointing.hub.repo_id, config.monitoring.wandb.project) == ("lab/maml", "pico")
    assert config.learning_dynamics.layer_suffixes == ["swiglu.w_2"]


@pytest.mark.parametrize("text", [PICO_TRAIN_YAML, PICO_MAML_YAML, EARLY_YAML])
def test_every_key_of_a_file_is_used_or_listed_in_a_note(text: str) -> None:
    migration = migrate(text)
    body = "\n".join(line for line in migration.text.splitlines() if not line.startswith("#"))
    for section, content in yaml.safe_load(text).items():
        for key, value in content.items():
            leaves = value if isinstance(value, dict) else {"": value}
            for leaf in leaves:
                dotted = ".".join(filter(None, (section, key, leaf)))
                assert dotted in body or any(note.startswith(dotted) for note in migration.notes), dotted
    assert parse_config(migration.text) == migration.config


def test_first_pico_maml_is_recognised_by_its_keys() -> None:
    config = migrate("training: {inner_learning_rate: 0.01, num_inner_steps: 5, meta_batch_size: 4}").config
    assert (config.meta.inner_lr, config.meta.inner_steps, config.meta.tasks_per_step) == (0.01, 5, 4)
    assert (config.meta.learner, config.smlmt.hybrid_ratio) == ("fomaml", 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {lr: 1e-3}", "training.lr is a key of pico_ds"),
        ("3", "must contain the sections"),
        ("training: {fabric: {precision: 64-true}}", "training.fabric.precision: got '64-true'"),
        ("training: {optimization: {lr_scheduler: wsd}}", "allowed: linear_with_warmup"),
        ("training: {fabric: {num_devices: auto}}", "training.fabric.num_devices: got 'auto', expected a positive"),
        ("smlmt: {hidden_dims: [96, 128]}", "all hidden layers have one width"),
        ("model: {d_model: 100}", "old.yaml, migrated: model.d_model: got 100"),
        ("model: {d_model: 96, d_model: 96}", "appears twice"),
    ],
)
def test_migration_fails_for_keys_without_a_counterpart(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        migrate(text, "old.yaml")
    assert expected in str(caught.value)


@pytest.mark.parametrize("no", ["false", "no", "off", "No"])
def test_yaml_1_1_booleans_stay_booleans(no: str) -> None:
    """Otherwise a file with `save_to_hf: no` would push to the hub."""
    smlmt = f"{{enabled: {no}, hybrid_ratio: 0.6, learn_inner_lr: {no}}}"
    hub = f"{{save_to_hf: {no}, hf_checkpoint: {{repo_id: a/b}}}}"
    config = migrate(f"smlmt: {smlmt}\ncheckpointing: {hub}").config
    assert (config.smlmt.hybrid_ratio, config.meta.learner, config.checkpointing.hub.repo_id) == (0.0, "anil", None)


def test_unknown_key_is_listed_in_a_note() -> None:
    assert any("model.dd: 3 is left out: it is not a known key of" in note for note in migrate("model: {dd: 3}").notes)


def test_migration_script_prints_a_valid_config(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(PICO_MAML_YAML)
    command = [sys.executable, str(REPOSITORY / "scripts" / "migrate_config.py")]
    done = subprocess.run([*command, str(tmp_path / "old.yaml")], capture_output=True, text=True, check=True)
    assert parse_config(done.stdout) == migrate(PICO_MAML_YAML).config
    assert "note: smlmt.classifier_head.init_method" in done.stderr
    refused = subprocess.run([*command, str(tmp_path / "none.yaml")], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: cannot read the configuration")
