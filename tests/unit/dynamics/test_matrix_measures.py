"""Tests measures against closed forms and direct definitions."""

import math

import numpy as np
import pytest
import torch

from pico_ds.dynamics.matrix_measures import (
    condition_number,
    gini,
    head_entropy,
    hoyer,
    linear_cka,
    proportional_effective_rank,
    singular_values,
)


def random_matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_is_1_for_equal_singular_values() -> None:
    assert proportional_effective_rank(singular_values(3 * torch.eye(7))) == pytest.approx(1)


def test_effective_rank_of_a_rank_one_matrix_is_1_over_its_size() -> None:
    matrix = torch.outer(torch.arange(1.0, 6), torch.ones(9))
    # rounding leaves the other singular values slightly above 0
    assert proportional_effective_rank(singular_values(matrix)) == pytest.approx(1 / 5, rel=1e-4)


def test_effective_rank_equals_its_definition() -> None:
    matrix = random_matrix(12, 30)
    values = np.linalg.svd(matrix.numpy().astype(np.float64), compute_uv=False)
    shares = values / values.sum()
    expected = math.exp(-(shares * np.log(shares)).sum()) / 12
    assert proportional_effective_rank(singular_values(matrix)) == pytest.approx(expected, rel=1e-6)


def test_condition_number_equals_that_of_numpy() -> None:
    matrix = random_matrix(8, 8)
    assert condition_number(singular_values(matrix)) == pytest.approx(np.linalg.cond(matrix.numpy()), rel=1e-4)
    assert condition_number(torch.tensor([2.0, 0.0])) == math.inf


def test_gini_equals_half_the_mean_difference_over_the_mean() -> None:
    values = random_matrix(5, 11)
    magnitudes = values.abs().flatten().double()
    expected = float((magnitudes[:, None] - magnitudes[None]).abs().mean() / (2 * magnitudes.mean()))
    assert gini(values) == pytest.approx(expected, rel=1e-9)
    assert gini(torch.ones(4, 4)) == pytest.approx(0, abs=1e-12)
    assert gini(torch.tensor([0.0, 0, 0, -5])) == pytest.approx(3 / 4)
    assert gini(torch.zeros(3)) == 0


def test_gini_of_many_values_is_accurate() -> None:
    # the Gini coefficient of the uniform distribution on [0, 1] is 1/3
    assert gini(torch.linspace(0, 1, 4_000_001)) == pytest.approx(1 / 3, rel=1e-6)


def test_hoyer_is_0_for_equal_values_and_1_for_a_single_value() -> None:
    assert hoyer(torch.full((3, 3), -2.0)) == pytest.approx(0, abs=1e-12)
    assert hoyer(torch.tensor([0.0, 7, 0, 0])) == pytest.approx(1)
    assert hoyer(torch.tensor([3.0, 4.0])) == pytest.approx((math.sqrt(2) - 7 / 5) / (math.sqrt(2) - 1))


@pytest.mark.parametrize("samples", [6, 50])
def test_cka_equals_its_definition_with_centered_kernels(samples: int) -> None:
    one, other = random_matrix(samples, 20), random_matrix(samples, 9, seed=1)
    centring = np.eye(samples) - 1 / samples
    kernels = [centring @ (x @ x.T) @ centring for x in (values.double().numpy() for values in (one, other))]
    expected = (kernels[0] * kernels[1]).sum() / math.prod(np.linalg.norm(kernel) for kernel in kernels)
    assert linear_cka(one, other) == pytest.approx(expected, rel=1e-9)


def test_cka_is_invariant_to_rotation_scale_and_offset() -> None:
    one = random_matrix(40, 10)
    rotation = torch.linalg.qr(random_matrix(10, 10, seed=2)).Q
    assert linear_cka(one, 3 * one @ rotation + 5) == pytest.approx(1, rel=1e-5)


def test_head_entropy_is_log_n_keys_for_uniform_attention_and_0_for_one_key() -> None:
    even, sharp = torch.full((1, 4, 8), 1 / 8), torch.eye(8)[:4][None]
    entropies = head_entropy(torch.stack([even, sharp], dim=1).expand(3, 2, 4, 8))
    assert entropies.tolist() == pytest.approx([math.log(8), 0], abs=1e-6)
