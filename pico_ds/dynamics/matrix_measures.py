"""Measures of a matrix, and similarity of two activation matrices, with the definitions of pico-analyze."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "rows columns"]


def singular_values(matrix: Matrix) -> Float[Tensor, " rank"]:
    """Return the singular values, descending, fp32."""
    return torch.linalg.svdvals(matrix.float())


def proportional_effective_rank(singular: Float[Tensor, " rank"]) -> float:
    """Return the effective rank (Roy and Vetterli 2007) divided by the number of singular values, in (0, 1].

    The effective rank is the exponential of the entropy of the normalized singular values. Nan if all are 0.
    """
    shares = singular.double() / singular.double().sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(entropy.exp()) / len(singular)


def condition_number(singular: Float[Tensor, " rank"]) -> float:
    """Return the largest singular value divided by the smallest; infinite if the smallest is 0."""
    return float(singular.max() / singular.min())


def gini(values: Tensor) -> float:
    """Return the Gini coefficient of the magnitudes: 0 if all are equal, close to 1 if a few dominate."""
    magnitudes = values.flatten().double().abs().sort().values
    count, total = len(magnitudes), magnitudes.sum()
    if total == 0:
        return 0.0
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=magnitudes.device)
    return float(((2 * ranks - count - 1) * magnitudes).sum() / (count * total))


def hoyer(values: Tensor) -> float:
    """Return the sparsity (Hoyer 2004): 0 if all magnitudes are equal, 1 if only one is not 0. Nan if all are 0."""
    flat = values.flatten().double()
    root = math.sqrt(len(flat))
    return (root - float(flat.abs().sum() / flat.norm())) / (root - 1)


def linear_cka(one: Matrix, other: Matrix) -> float:
    """Return the linear centered kernel alignment of two activation matrices (Kornblith et al. 2019, arXiv 1905.00414).

    Args:
        one, other: activations of the same samples, one row per sample. The widths may differ.
    """
    x, y = (values.double() - values.double().mean(0) for values in (one, other))
    if len(x) < x.shape[1]:
        # the Gram matrices give an equal result and are smaller here
        k, m = x @ x.T, y @ y.T
        return float((k * m).sum() / (k.norm() * m.norm()))
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def head_entropy(probabilities: Float[Tensor, "rows heads queries keys"]) -> Float[Tensor, "heads"]:
    """Return the mean attention entropy of each head over rows and queries [nats]."""
    return -torch.special.xlogy(probabilities, probabilities).sum(-1).mean((0, 2))
