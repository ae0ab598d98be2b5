"""Outputs of the recorded decoder modules, gradients of their weights, and the entropy of attention."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from pico_ds.dynamics.matrix_measures import head_entropy
from pico_ds.engine.distributed import Process
from pico_ds.meta.functional_model import FunctionalModel, Parameters
from pico_ds.model.meta_model import DECODER


@dataclass(frozen=True)
class Observation:
    """Activations, gradients and loss for some rows, in host memory.

    Attributes:
        activations: output of each module at one position of each row, fp32.
        gradients: gradients of the mean cross-entropy over all tokens [nats per token] by each weight, fp32.
        loss: mean cross-entropy [nats per token].
    """

    activations: dict[str, Float[Tensor, "samples width"]]
    gradients: dict[str, Float[Tensor, "outputs inputs"]]
    loss: float


def observe(
    network: FunctionalModel,
    theta: Parameters,
    rows: Int[Tensor, "samples length"],
    layers: Mapping[str, str],
    sequence_idx: int,
    micro_batch_size: int,
    process: Process,
    on_progress: Callable[[], None] = lambda: None,
) -> Observation:
    """Run a forward and a backward pass over the rows. A collective; the result does not depend on the number of ranks.

    The parameters and their `.grad` are not modified. The backward pass moves the gradient of each layer to the host as
    soon as it is computed, so the device holds the gradient of only one layer.

    Args:
        network: not compiled.
        rows: equal on every rank. The last token of a row is only a target.
        layers: parameter names by module path.
        sequence_idx: position whose activations are kept. A negative position counts from the end.
        on_progress: called for every micro-batch.
    """
    n_samples, n_tokens = len(rows), rows[:, 1:].numel()
    activations: dict[str, Tensor] = {}
    gradients = {path: torch.zeros(theta[name].shape) for path, name in layers.items()}
    loss_sum = torch.zeros((), device=process.device)
    leaves = {path: theta[name].detach().requires_grad_() for path, name in layers.items()}
    for path, leaf in leaves.items():
        leaf.register_post_accumulate_grad_hook(partial(_move_gradient, total=gradients[path]))
    parameters = {**theta, **{name: leaves[path] for path, name in layers.items()}}
    local_indices = torch.arange(process.rank, n_samples, process.world_size)
    for indices in local_indices.split(micro_batch_size):
        on_progress()
        batch = rows[indices].to(process.device)
        with record_outputs(network.skeleton.get_submodule(DECODER.removesuffix(".")), layers) as outputs:
            loss = network.language_model_loss(parameters, batch)
        for path, output in outputs.items():
            if path not in activations:
                activations[path] = torch.zeros(n_samples, output.shape[-1])
            activations[path][indices] = output[:, sequence_idx].float().cpu()
        outputs.clear()
        (loss / n_tokens).backward()
        loss_sum += loss.detach()
    return Observation(
        {
            path: _sum_in_host_memory(values, process)
            for path, values in _ordered_activations(activations, layers, theta, n_samples)
        },
        {path: _sum_in_host_memory(values, process) for path, values in gradients.items()},
        float(process.sum_over_ranks(loss_sum)) / n_tokens,
    )


@contextmanager
def record_outputs(decoder: nn.Module, paths: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Record the detached outputs of the decoder's modules in the last forward pass inside the `with` block.

    The recomputation of activation checkpointing is not recorded if the backward pass runs after the `with` block.
    """
    outputs: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: object, output: Tensor, path: str) -> None:
        outputs[path] = output.detach()

    handles = [decoder.get_submodule(path).register_forward_hook(partial(keep, path=path)) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _move_gradient(leaf: Tensor, total: Tensor) -> None:
    assert leaf.grad is not None
    total += leaf.grad.to("cpu", torch.float32)
    leaf.grad = None


def _ordered_activations(
    activations: dict[str, Tensor], layers: Mapping[str, str], theta: Parameters, n_samples: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the activations in the order of the layers. A rank without rows yields zeros."""
    for path, name in layers.items():
        weight = theta[name]
        # output width: columns of the weight for the embedding, rows for linear layers, length for norms
        width = weight.shape[-1] if path == "embedding_proj" else weight.shape[0]
        yield path, activations.get(path, torch.zeros(n_samples, width))


def _sum_in_host_memory(values: Tensor, process: Process) -> Tensor:
    """Return the sum over ranks, in host memory. Only this layer is moved to the device."""
    if process.world_size == 1:
        return values
    return process.sum_over_ranks(values.to(process.device)).cpu()


@torch.no_grad()
def observe_head_entropy(
    network: FunctionalModel,
    theta: Parameters,
    rows: Int[Tensor, "samples length"],
    process: Process,
    on_progress: Callable[[], None] = lambda: None,
) -> Float[Tensor, "layers heads"]:
    """Return the mean attention entropy of each head over rows and queries [nats]. A collective.

    The result does not depend on the number of ranks.

    Args:
        network: not compiled.
        rows: equal on every rank. The last token of each row is dropped.
        on_progress: called for every row.
    """
    skeleton = network.skeleton
    totals: list[Tensor] = [torch.zeros(())] * len(skeleton.decoder.layers)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, layer: int) -> Tensor:
        groups = queries.shape[-3] // keys.shape[-3]
        keys, values = (states.repeat_interleave(groups, dim=-3) for states in (keys, values))
        scores = queries.float() @ keys.float().mT / queries.shape[-1] ** 0.5
        is_future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        probabilities = scores.masked_fill(is_future, -torch.inf).softmax(-1)
        totals[layer] = head_entropy(probabilities).to(process.device)
        return probabilities.to(values.dtype) @ values

    weights = {name: weight.to(network.compute_dtype) for name, weight in theta.items()}
    n_heads = theta[f"{DECODER}layers.0.attention.q_proj.weight"].shape[0] // skeleton.decoder.head_dim
    total = torch.zeros(len(totals), n_heads, device=process.device)
    for row in rows[process.rank :: process.world_size, :-1].to(process.device):
        on_progress()
        # one row at a time, because the probabilities of a layer have heads * length * length values per row
        functional_call(skeleton.with_attention(attend), weights, (row[None],))
        total += torch.stack(totals)
    return process.sum_over_ranks(total).cpu() / len(rows)
