"""Losses and features of the model as pure functions of its parameters."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from pico_ds.config import Readout
from pico_ds.meta.inner_optimizer import SGD, Update
from pico_ds.model.attention import Attend
from pico_ds.model.attention_kernels.kernel_loading import math_attention
from pico_ds.model.compilation import compiled
from pico_ds.model.language_model_loss import chunk_loss_and_gradients, linear_cross_entropy, token_cross_entropies
from pico_ds.model.meta_model import OUTPUT_PROJECTION, MetaModel, is_body_parameter
from pico_ds.tasks.episode import Contexts

CompileMode = Literal["none", "block", "model"]
logger = logging.getLogger(__name__)

#: complete parameters by name, in fp32 or in the compute type
Parameters = Mapping[str, Tensor]


class FunctionalModel:
    """A model that takes its parameters as an argument. It casts them to `compute_dtype` if necessary."""

    def __init__(
        self,
        skeleton: MetaModel,
        compute_dtype: torch.dtype,
        feature_squared_norm: float,
        compile_mode: CompileMode = "none",
        compile_backend: str = "inductor",
        attend_batch: Attend = math_attention,
        tasks_differ: bool = False,
    ) -> None:
        """
        Args:
            attend_batch: attention for a batch of tasks, under `torch.func.vmap`.
            compile_mode: `model` compiles the whole network as one graph, `block` compiles each decoder block.
            compile_backend: backend of torch.compile.
            tasks_differ: tasks have different numbers of contexts. A compiled network then pads the contexts, so that
                it is compiled for few shapes.
        """
        self.skeleton = skeleton
        self.compute_dtype = compute_dtype
        self.feature_length = feature_squared_norm**0.5
        self.n_layers = len(skeleton.decoder.layers)
        #: the parameters that the hidden states depend on, in a fixed order, because another set compiles another graph
        self._names = [name for name, _ in skeleton.named_parameters() if is_body_parameter(name)]
        self._ndim = skeleton.get_parameter(self._names[0]).ndim
        self._skeleton_of_tasks = skeleton.with_attention(attend_batch)
        self._run: Callable[..., Tensor] = self._call
        self._on_chunk = chunk_loss_and_gradients
        #: update of the inner loop; if compiled, one pass over the weights computes the new weights and their cast
        self.update = SGD
        self._pads_contexts = tasks_differ and compile_mode != "none"
        self._compiled: set[tuple[object, ...]] | None = None if compile_mode == "none" else set()
        if compile_mode == "none":
            return
        self._on_chunk = compiled(chunk_loss_and_gradients, compile_backend)
        self.update = Update(*(compiled(step, compile_backend) for step in SGD))
        if compile_mode == "model":
            self._run = compiled(self._call, compile_backend)
        else:
            for block in skeleton.decoder.layers:
                block.forward = compiled(block.forward, compile_backend)  # type: ignore[method-assign]

    def _call(self, weights: dict[str, Tensor], input_ids: Tensor) -> Tensor:
        if input_ids.ndim == 2:
            return functional_call(self.skeleton, weights, (input_ids,))
        skeleton = self._skeleton_of_tasks
        # vmap turns each matrix product into one product over all tasks
        return torch.func.vmap(lambda task, ids: functional_call(skeleton, task, (ids,)))(weights, input_ids)

    def hidden(
        self, parameters: Parameters, input_ids: Int[Tensor, "*tasks batch seq"]
    ) -> Float[Tensor, "*tasks batch seq width"]:
        """Return the states of the decoder's last block, in the compute type.

        Args:
            parameters: in the model's shapes, or all with a first axis of tasks for separate weights of each task.
        """
        if input_ids.ndim == 3 and parameters[self._names[0]].ndim == self._ndim:
            return self.hidden(parameters, input_ids.flatten(0, 1)).unflatten(0, input_ids.shape[:2])
        cast = {name: parameters[name].to(self.compute_dtype) for name in self._names}
        if self._compiled is None:
            return self._run(cast, input_ids)
        # all weights agree on whether they require gradients, so check only one
        key = (tuple(input_ids.shape), torch.is_grad_enabled() and cast[self._names[0]].requires_grad)
        if key in self._compiled:
            return self._run(cast, input_ids)
        started = time.perf_counter()
        hidden = self._run(cast, input_ids)
        self._compiled.add(key)
        logger.info(
            "compiled for %s %s gradients in %.1f s",
            list(key[0]),
            "with" if key[1] else "without",
            time.perf_counter() - started,
        )
        return hidden

    def features(
        self, parameters: Parameters, contexts: Contexts, readout: Readout
    ) -> Float[Tensor, "*tasks contexts width"]:
        """Return the features of each context, fp32, scaled to a fixed norm."""
        return self.scaled(self.readout_states(parameters, contexts, readout))

    def scaled(self, states: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """Return features: states at readout positions, scaled to a fixed norm."""
        return self.feature_length * F.normalize(states, dim=-1)

    def readout_states(
        self, parameters: Parameters, contexts: Contexts, readout: Readout
    ) -> Float[Tensor, "*tasks contexts width"]:
        """Return the state of each context at its readout, fp32; the mean over its tokens if the readout is `mean`."""
        count, input_ids = contexts.input_ids.shape[-2], contexts.input_ids
        if self._pads_contexts:
            input_ids = F.pad(input_ids, (0, 0, 0, _padded_count(count) - count))
        return self.at_readout(self.hidden(parameters, input_ids)[..., :count, :, :], contexts, readout)

    @staticmethod
    def at_readout(
        states: Float[Tensor, "*tasks contexts seq width"], contexts: Contexts, readout: Readout
    ) -> Float[Tensor, "*tasks contexts width"]:
        """Return the state of each context at its readout, fp32; the mean over its tokens if the readout is `mean`."""
        states = states.float()
        if readout == "mean":
            real = torch.arange(states.shape[-2], device=states.device) < contexts.lengths[..., None]
            return (states * real[..., None]).sum(-2) / contexts.lengths[..., None]
        return states.take_along_dim(contexts.readout_index[..., None, None], dim=-2).squeeze(-2)

    def language_model_loss(self, parameters: Parameters, rows: Int[Tensor, "rows length"]) -> Float[Tensor, ""]:
        """Return the SUM of the next-token cross-entropies of the rows, in nats, fp32."""
        return self.vocabulary_loss(
            parameters, self.hidden(parameters, rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()
        )

    def vocabulary_loss(
        self, parameters: Parameters, states: Float[Tensor, "count width"], targets: Int[Tensor, " count"]
    ) -> Float[Tensor, ""]:
        """Return the SUM of the cross-entropies of tokens, computed from states of the last block, in nats, fp32."""
        projection = parameters[OUTPUT_PROJECTION].to(self.compute_dtype)
        return linear_cross_entropy(states.to(self.compute_dtype), projection, targets, on_chunk=self._on_chunk)

    def token_losses(
        self, parameters: Parameters, states: Float[Tensor, "count width"], targets: Int[Tensor, " count"]
    ) -> Float[Tensor, " count"]:
        """Return the cross-entropy of each token from states of the last block [nats], fp32; 0 for target -100."""
        projection = parameters[OUTPUT_PROJECTION].to(self.compute_dtype)
        return token_cross_entropies(states.to(self.compute_dtype), projection, targets)


def _padded_count(count: int) -> int:
    """Return `count` rounded up to the next 2^k or 3 * 2^k."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power
