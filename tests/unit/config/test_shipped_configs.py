"""The files of configs/ and ds_configs/ are valid, and every field of the schema is used."""

import ast
from itertools import product
from pathlib import Path

import pytest
from pydantic import BaseModel

from pico_ds.config import RunConfig, load_config
from pico_ds.config.deepspeed_config import load_deepspeed_config, resolve_deepspeed_config, zero_stage
from pico_ds.model.decoder import parameter_count

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
DS_CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))
SIZES = {
    "tiny": 11_282_784,
    "small": 64_595_328,
    "medium": 181_095_168,
    "large": 569_808_384,
    "1b": 1_057_548_288,
    "1b-deep": 985_081_344,
}


def test_all_documented_configs_exist() -> None:
    assert {path.name for path in DS_CONFIGS} == {
        f"{name}.json" for name in ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
    }
    expected = {"demo.yaml"} | {f"{kind}-{size}.yaml" for kind, size in product(("pico", "pico-maml"), SIZES)}
    assert {path.name for path in CONFIGS} == {*expected, "pico-maml-parity.yaml"}


@pytest.mark.parametrize(("config", "ds_config"), product(CONFIGS, DS_CONFIGS), ids=lambda path: path.stem)
def test_every_config_works_with_every_deepspeed_config(config: Path, ds_config: Path) -> None:
    content = load_deepspeed_config(ds_config)
    # stage 0 needs fp32
    overrides = ["training.precision=fp32"] if zero_stage(content) == 0 else []
    settings = resolve_deepspeed_config(content, load_config(config, overrides), world_size=8)
    assert settings["train_batch_size"] == 8


@pytest.mark.parametrize(("size", "kind"), product(SIZES, ("pico", "pico-maml")))
def test_shipped_models_have_the_documented_parameter_counts(size: str, kind: str) -> None:
    config = load_config(REPOSITORY / "configs" / f"{kind}-{size}.yaml")
    assert config.model.vocab_size is not None
    assert parameter_count(config.model, config.model.vocab_size) == SIZES[size]


def test_maml_configs_have_pico_mamls_task_shape_and_inner_steps() -> None:
    for size in SIZES:
        config = load_config(REPOSITORY / "configs" / f"pico-maml-{size}.yaml")
        assert (config.smlmt.n_way, config.smlmt.k_shot, config.meta.inner_steps) == (32, 4, 10)


def test_parity_config_has_pico_mamls_settings() -> None:
    config = load_config(REPOSITORY / "configs" / "pico-maml-parity.yaml")
    meta, smlmt, training = config.meta, config.smlmt, config.training
    assert (meta.learner, meta.head, smlmt.readout) == ("anil", "vocab", "mask")
    assert (meta.vocab_head_layers, meta.vocab_head_width, meta.vocab_head_dropout) == (4, 128, 0.1)
    assert (smlmt.n_way, smlmt.k_shot, meta.inner_steps, meta.head_inner_lr) == (32, 4, 10, 1e-3)
    assert (smlmt.hybrid_ratio, training.lr, training.lr_warmup_steps) == (0.5, 3e-4, 2500)


def fields(section: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= fields(field.annotation)
        names.add(name)
    return names


def test_every_declared_field_is_read_somewhere() -> None:
    read: set[str] = set()
    for path in (REPOSITORY / "pico_ds").rglob("*.py"):
        # properties of sections count as readers, for example `RunConfig.meta_ratio` of smlmt.hybrid_ratio
        if path.parent.name == "config" and path.name == "validation.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    assert fields(RunConfig) - read == set()
