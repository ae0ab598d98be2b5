"""The chunked loss equals the plain cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from pico_ds.model.language_model_loss import linear_cross_entropy

TOKENS, WIDTH, VOCAB = 23, 8, 61


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCAB, (TOKENS,), generator=generator)


@pytest.mark.parametrize("chunk_logits", [1, VOCAB, 5 * VOCAB, 7 * VOCAB + 3, 10**9])
def test_loss_and_gradients_equal_plain_cross_entropy(chunk_logits: int) -> None:
    hidden, weight, targets = inputs(torch.float32)
    got = linear_cross_entropy(hidden, weight, targets, chunk_logits)
    wanted = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    torch.testing.assert_close(got, wanted)
    for scale in (1.0, 0.3):
        for mine, plain in zip(
            torch.autograd.grad(scale * got, [hidden, weight], retain_graph=True),
            torch.autograd.grad(scale * wanted, [hidden, weight], retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, plain)


def test_bf16_loss_is_as_accurate_as_the_plain_loss() -> None:
    """The oracle is fp64 at the rounded inputs. Each chunk's gradient is rounded to bf16, but not their sum."""
    hidden, weight, targets = inputs(torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    wanted = torch.autograd.grad(F.cross_entropy(F.linear(*exact), targets, reduction="sum"), exact)
    plain = torch.autograd.grad(
        F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum"), [hidden, weight]
    )
    got = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, 5 * VOCAB), [hidden, weight])
    for mine, theirs, truth in zip(got, plain, wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - truth).norm() <= 1.5 * (theirs - truth).norm()


def test_loss_without_gradients_is_equal() -> None:
    hidden, weight, targets = inputs(torch.float32)
    wanted = linear_cross_entropy(hidden, weight, targets, 5 * VOCAB)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, 5 * VOCAB), wanted)


def test_loss_never_allocates_all_logits() -> None:
    tokens, vocab = 512, 4096
    hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(vocab, 4, requires_grad=True)
    targets = torch.randint(0, vocab, (tokens,))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, chunk_logits=32 * vocab), [hidden, weight])
    assert largest == 32 * vocab


def test_loss_of_no_tokens_is_zero() -> None:
    """A rank may have no rows."""
    hidden, weight, targets = inputs(torch.float32)
    empty = hidden[:0].detach().requires_grad_()
    loss = linear_cross_entropy(empty, weight, targets[:0])
    assert loss == 0
    to_hidden, to_weight = torch.autograd.grad(loss, [empty, weight])
    assert to_hidden.shape == (0, WIDTH)
    assert not to_weight.any()
    with torch.no_grad():
        assert linear_cross_entropy(empty, weight, targets[:0]) == 0
