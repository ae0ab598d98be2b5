import math

import pytest
import torch

from pico_ds.config import MetaConfig, TrainingConfig
from pico_ds.engine.optimizer import build_optimizer, learning_rate
from pico_ds.meta.meta_model_builder import build_meta_model
from tests.fomaml_reference import SHAPE


def test_warmup_cosine_and_linear_by_hand() -> None:
    common = {"lr": 1.0, "lr_warmup_steps": 10, "max_steps": 110, "final_lr_ratio": 0.1}
    cosine = TrainingConfig(lr_schedule="cosine", **common)
    linear = TrainingConfig(lr_schedule="linear", **common)
    constant = TrainingConfig(lr_schedule="constant", **common)
    for config in (cosine, linear, constant):
        assert [learning_rate(step, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
        assert learning_rate(10, config) == pytest.approx(1.0)
    assert learning_rate(60, cosine) == pytest.approx(0.55)
    assert learning_rate(35, cosine) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(60, linear) == pytest.approx(0.55)
    assert learning_rate(85, linear) == pytest.approx(0.325)
    assert learning_rate(110, linear) == pytest.approx(0.1)
    assert learning_rate(109, constant) == 1.0


def test_norms_biases_and_embeddings_are_not_decayed() -> None:
    module = build_meta_model(SHAPE, MetaConfig(head="linear"), n_way=3, vocab_size=61, seed=0)
    optimizer = build_optimizer(module, TrainingConfig(weight_decay=0.3))
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    names = {name: decay[id(weight)] for name, weight in module.named_parameters()}
    undecayed = {name for name, value in names.items() if value == 0}
    assert undecayed == {
        name for name in names if "norm" in name or name in ("decoder.embedding_proj.weight", "head.bias")
    }
    assert set(names.values()) == {0.0, 0.3}
    assert len(decay) == len(list(module.parameters()))


def test_initial_weights_depend_only_on_the_seed() -> None:
    models = [build_meta_model(SHAPE, MetaConfig(), n_way=3, vocab_size=61, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([w.flatten() for w in model.parameters()]) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
