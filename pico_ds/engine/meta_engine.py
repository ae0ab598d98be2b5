"""The ZeRO-sharded model and optimizer, seen by the outer loop as: read all parameters, apply one gradient."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pico_ds.config import TrainingConfig
from pico_ds.engine.distributed import Process
from pico_ds.engine.optimizer import build_optimizer


class MetaEngine:
    """First-order meta-learning on a DeepSpeed engine.

    DeepSpeed never sees the inner loop: `full_parameters` gives a rank-local copy once per outer step, and
    `apply_gradient` hands the finished outer gradient to ONE reduction and one optimizer step. Communication is
    therefore independent of the inner loop.
    """

    def __init__(
        self, module: nn.Module, training: TrainingConfig, deepspeed_config: dict[str, Any], process: Process
    ) -> None:
        """
        Args:
            module: full parameters, equal on every rank.
            deepspeed_config: a complete configuration (`resolve_deepspeed_config`).
        """
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.process = process
        module.to(process.device)
        self._engine, _, _, _ = deepspeed.initialize(
            model=module, optimizer=build_optimizer(module, training), config=deepspeed_config
        )
        self.stage = int(self._engine.zero_optimization_stage())
        self.parameters: dict[str, nn.Parameter] = dict(self._engine.module.named_parameters())

    def full_parameters(self, for_update: bool = False) -> dict[str, Tensor]:
        """All parameters, whole, rank-local, in the run's precision. A collective under ZeRO-3: all ranks must call it.

        The tensors may share storage with the model's: they are valid until the next `apply_gradient`, and must not be
        written to.

        Args:
            for_update: `apply_gradient` will follow. ZeRO-3 lets gradients be assigned while parameters are whole only.
        """
        if self.stage < 3:
            return {name: weight.detach() for name, weight in self.parameters.items()}
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.parameters.values())):
            if for_update:
                for weight in self.parameters.values():
                    weight.grad = torch.zeros_like(weight.data)
            return {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def apply_gradient(self, gradient: Mapping[str, Tensor], lr: float) -> float:
        """Sum a gradient over ranks and take one optimizer step.

        Args:
            gradient: this rank's part of the outer gradient, already divided by the number of tasks (or tokens) of ALL
                ranks; ranks may hold unequal shares, or none. Not to be used again: DeepSpeed writes to it.

        Returns:
            the norm of the summed gradient before clipping.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            self._set_gradients(gradient)
            self._engine.allreduce_gradients()
            reduced = [weight.grad for weight in self.parameters.values() if weight.grad is not None]
            norm = torch.nn.utils.get_total_norm(reduced)
        else:
            # entered without a backward pass: leaving the block reduces whatever stands in .grad, once
            with self._engine.coalesce_grad_reduction():
                self._set_gradients(gradient)
        self._engine.step()
        return float(norm if self.stage == 0 else self._engine.get_global_grad_norm())

    def drop_gradient(self) -> None:
        """Forget the slots that `full_parameters(for_update=True)` made: the step is skipped."""
        for weight in self.parameters.values():
            weight.grad = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """DeepSpeed's optimizer: AdamW itself under stage 0, else a wrapper around it."""
        return self._engine.optimizer

    def set_counters(self, steps: int) -> None:
        """Say how many steps DeepSpeed has taken; one step of it is one sample on every rank."""
        self._engine.global_steps = self._engine.micro_steps = steps
        self._engine.global_samples = steps * self.process.world_size

    def _set_gradients(self, gradient: Mapping[str, Tensor]) -> None:
        # DeepSpeed divides by the world size; the gradient is a share of a sum
        world_size = self.process.world_size
        for name, weight in self.parameters.items():
            scaled = gradient[name] if world_size == 1 else gradient[name] * world_size
            if self.stage == 3:
                assert weight.grad is not None, "full_parameters(for_update=True) must come before apply_gradient"
                weight.grad.copy_(scaled)
            else:
                weight.grad = scaled.to(weight.dtype)
