"""FLOP counts agree with a hand calculation and with torch's counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pico_ds.config import MetaConfig, ModelConfig, parse_config
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.language_model_gradient import add_language_model_gradient
from pico_ds.meta.learners import make_learner
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.model.flops import context_flops, forward_flops_per_token, language_model_flops, peak_flops
from tests.fomaml_reference import add_task_gradient, random_episode

SHAPE = ModelConfig(d_model=32, n_layers=3, attention_n_heads=4, attention_n_kv_heads=2, activation_hidden_dim=64)
VOCAB = 61


def test_flops_of_one_token_match_a_hand_calculation() -> None:
    """pico-1b: 14 blocks of q, o (d^2), k, v (d^2 / 4 each), three d x 4d matrices, two norms; a final norm; T 2048."""
    shape = parse_config(
        "model: {d_model: 2048, n_layers: 14, attention_n_heads: 16, attention_n_kv_heads: 4, "
        "activation_hidden_dim: 8192}"
    ).model
    d = 2048
    body = 14 * (2.5 * d * d + 3 * d * 4 * d + 2 * d) + d
    assert forward_flops_per_token(shape, 50304, 2048, with_logits=True) == 2 * (body + 50304 * d) + 2 * 14 * 2048 * d
    assert forward_flops_per_token(shape, 50304, 2048, with_logits=False) == 2 * body + 2 * 14 * 2048 * d


@pytest.fixture
def network() -> FunctionalModel:
    return FunctionalModel(build_model_skeleton(SHAPE, MetaConfig(), 3, VOCAB), torch.float32, 4.0)


@pytest.fixture
def theta() -> dict[str, torch.Tensor]:
    module = build_meta_model(SHAPE, MetaConfig(), 3, VOCAB, seed=0)
    return {name: weight.detach() for name, weight in module.named_parameters()}


def not_counted(rows: int, length: int) -> int:
    """FLOPs that torch's counter leaves out: norms, and attention, whose CPU kernel it does not know."""
    norms = 2 * (2 * SHAPE.n_layers + 1) * SHAPE.d_model
    return rows * length * (norms + 2 * SHAPE.n_layers * length * SHAPE.d_model)


def test_row_flops_match_a_flop_counter(network: FunctionalModel, theta: dict[str, torch.Tensor]) -> None:
    rows = torch.randint(0, VOCAB, (4, 17))
    with FlopCounterMode(display=False) as counter:
        add_language_model_gradient(network, theta, rows, GradientSum(theta), 1.0, micro_batch_size=4)
    wanted = language_model_flops(SHAPE, VOCAB, rows=4, length=16)
    assert counter.get_total_flops() == wanted - 3 * not_counted(4, 16)


@pytest.mark.parametrize(("adapt", "inner_steps"), [("all", 0), ("all", 1), ("all", 3), ("head", 5)])
@pytest.mark.parametrize("head", ["prototype", "linear"])
def test_task_flops_match_a_flop_counter(
    network: FunctionalModel, theta: dict[str, torch.Tensor], adapt: str, inner_steps: int, head: str
) -> None:
    meta = MetaConfig(head=head, inner_steps=inner_steps, adapt=adapt)
    module = build_meta_model(SHAPE, meta, 3, VOCAB, seed=0)
    theta = {name: weight.detach() for name, weight in module.named_parameters()}
    with FlopCounterMode(display=False) as counter:
        add_task_gradient(network, theta, random_episode(0), "fim", meta, GradientSum(theta), 1.0)
    pass_counts = make_learner(meta, module.decoder).pass_counts(step=0)
    # the matrix products of the head are about 1 % of the total
    counted = 6 * (pass_counts.support + pass_counts.query) * (context_flops(SHAPE, VOCAB, 9) - not_counted(1, 9))
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.015)


def test_unknown_device_has_no_peak_flops() -> None:
    assert peak_flops(torch.device("cpu")) is None
