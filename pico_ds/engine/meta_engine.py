"""The ZeRO-sharded model and optimizer, seen by the outer loop as: read all parameters, apply one gradient."""

import importlib
import logging
import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any
from unittest import mock

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pico_ds.config import ConfigError, TrainingConfig
from pico_ds.engine.distributed import Process
from pico_ds.engine.gradient_norm import norm_before_step, norm_within_step
from pico_ds.engine.optimizer import build_optimizer

#: releases of DeepSpeed whose private state is known to look as this package expects
_FIRST_DEEPSPEED, _NEXT_DEEPSPEED = (0, 19, 8), (0, 20)


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

        _check_deepspeed(version("deepspeed"))
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.process = process
        self._max_norm = training.max_grad_norm
        #: of the step that is being applied
        self._applying = False
        self._sound: Tensor | None = None
        self._norm: Tensor | None = None
        module.to(process.device)
        adamw = build_optimizer(module, training)
        adamw.register_step_pre_hook(self._pre_optim_step)
        _import_muon_uncompiled()
        self._engine, _, _, _ = deepspeed.initialize(model=module, optimizer=adamw, config=deepspeed_config)
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
                    # a slot of the right shape, which takes no memory until the gradient comes
                    weight.grad = weight.data.new_zeros(()).expand_as(weight.data)
            return {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def apply_gradient(
        self, gradient: Mapping[str, Tensor], lr: float, sound: Bool[Tensor, ""] | None = None
    ) -> Float[Tensor, ""]:
        """Average a gradient over ranks, clip it, and take one optimizer step.

        Where the gradient is not finite the optimizer changes nothing, moments included. The device decides that: the
        host does not wait for it (but under ZeRO-3 and with offloading, where DeepSpeed does).

        Args:
            gradient: this rank's, in the run's precision; ranks with unequal shares of the work, or with none, have
                weighted theirs so that the MEAN over ranks is the outer gradient. Not to be used again: DeepSpeed
                writes to it.
            sound: False changes nothing; the same on every rank.

        Returns:
            the norm of the averaged gradient before clipping.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._sound, self._norm = sound, None
        if self.stage == 0:
            self._set_gradients(gradient)
            self._engine.allreduce_gradients()
            reduced = [weight.grad for weight in self.parameters.values() if weight.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(reduced)
        else:
            # entered without a backward pass: leaving the block reduces whatever stands in .grad, once
            with self._engine.coalesce_grad_reduction():
                self._set_gradients(gradient)
            self._norm = norm_before_step(self._engine.optimizer, self.stage, self.process)
        self._applying = True
        self._engine.step()
        self._applying = False
        # none where DeepSpeed did not come to the update: the gradient was not finite
        return torch.tensor(math.inf) if self._norm is None else self._norm

    def _pre_optim_step(self, adamw: Any, *_: object) -> None:
        """Give AdamW what torch's gradient scalers would: a divisor, and whether to leave everything as it is."""
        if not self._applying:
            return  # DeepSpeed makes the moments by a step of its own
        if self._norm is None:
            self._norm = norm_within_step(self._engine.optimizer)
        # ZeRO-3 steps through a part of the parameters at a time, the other groups being empty
        device = next(weight.device for group in adamw.param_groups for weight in group["params"])
        norm = self._norm.to(device, torch.float32)
        sound = norm.isfinite() if self._sound is None else norm.isfinite() & self._sound.to(device)
        adamw.found_inf = (~sound).float()
        if self._max_norm:
            adamw.grad_scale = ((norm + 1e-6) / self._max_norm).clamp(min=1.0)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """DeepSpeed's optimizer: AdamW itself under stage 0, else a wrapper around it."""
        return self._engine.optimizer

    def set_counters(self, steps: int) -> None:
        """Say how many steps DeepSpeed has taken; one step of it is one sample on every rank."""
        self._engine.global_steps = self._engine.micro_steps = steps
        self._engine.global_samples = steps * self.process.world_size

    def _set_gradients(self, gradient: Mapping[str, Tensor]) -> None:
        for name, weight in self.parameters.items():
            if self.stage == 3:
                assert weight.grad is not None, "full_parameters(for_update=True) must come before apply_gradient"
                weight.grad.data = gradient[name]
            else:
                weight.grad = gradient[name]


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon optimizer, which no run uses, without the compiler that its decorators import.

    `deepspeed.initialize` imports the module to name its class. Decorated by `torch.compile`, the module imports
    inductor, which takes 0.8 s of CPU time on every rank. `tests/end_to_end/test_imports.py` shows that it does not.
    """
    with mock.patch.object(torch, "compile", new=lambda function: function):
        try:
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
        except ImportError:  # a release without Muon has nothing to import
            return


def _check_deepspeed(found: str) -> None:
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if not _FIRST_DEEPSPEED <= numbers < _NEXT_DEEPSPEED:
        raise ConfigError(
            f"DeepSpeed {found} is installed, and its private state may differ from what is expected here; "
            "pip install 'deepspeed>=0.19.8,<0.20'"
        )
