"""Measures of one matrix, or of two matrices of activations; defined as in pico-analyze."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "rows columns"]


def singular_values(matrix: Matrix) -> Float[Tensor, " rank"]:
    """Singular values, descending, fp32."""
    return torch.linalg.svdvals(matrix.float())


def proportional_effective_rank(singular: Float[Tensor, " rank"]) -> float:
    """Exp of the entropy of the normalised singular values (Roy and Vetterli 2007), over their number; in (0, 1].

    Nan where all are 0.
    """
    shares = singular.double() / singular.double().sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(entropy.exp()) / len(singular)


def condition_number(singular: Float[Tensor, " rank"]) -> float:
    """Largest over smallest singular value; infinite where the smallest is 0."""
    return float(singular.max() / singular.min())


def gini(values: Tensor) -> float:
    """Gini coefficient of the magnitudes: 0 where all are equal, towards 1 where few hold everything."""
    magnitudes = values.flatten().double().abs().sort().values
    count, total = len(magnitudes), magnitudes.sum()
    if total == 0:
        return 0.0
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=magnitudes.device)
    return float(((2 * ranks - count - 1) * magnitudes).sum() / (count * total))


def hoyer(values: Tensor) -> float:
    """Hoyer's sparsity (2004): 0 where all magnitudes are equal, 1 where one alone is not 0.

    Nan where all are 0.
    """
    flat = values.flatten().double()
    root = math.sqrt(len(flat))
    return (root - float(flat.abs().sum() / flat.norm())) / (root - 1)


def linear_cka(one: Matrix, other: Matrix) -> float:
    """Linear centred kernel alignment of two matrices of activations (Kornblith et al. 2019, arXiv 1905.00414).

    Args:
        one, other: a row for each sample, the same samples; widths may differ.
    """
    x, y = (values.double() - values.double().mean(0) for values in (one, other))
    if len(x) < x.shape[1]:
        # the same by Gram matrices, which are smaller here
        k, m = x @ x.T, y @ y.T
        return float((k * m).sum() / (k.norm() * m.norm()))
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def head_entropy(probabilities: Float[Tensor, "rows heads queries keys"]) -> Float[Tensor, "heads"]:
    """Mean entropy of where each head looks, over rows and queries [nats]."""
    return -torch.special.xlogy(probabilities, probabilities).sum(-1).mean((0, 2))
