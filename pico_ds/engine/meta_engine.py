"""Holds the ZeRO-sharded model and optimizer. The outer loop reads all parameters and applies one gradient."""

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
from pico_ds.engine.distributed import Process, collective_timeout, limit_collectives
from pico_ds.engine.gradient_norm import norm_before_step, norm_within_step
from pico_ds.engine.optimizer import build_optimizer

#: first supported release of DeepSpeed, and first unsupported one: this package depends on private state
_FIRST_DEEPSPEED, _NEXT_DEEPSPEED = (0, 19, 8), (0, 20)


class MetaEngine:
    """First-order meta-learning on a DeepSpeed engine.

    DeepSpeed does not take part in the inner loop. Once per outer step, `full_parameters` returns rank-local
    parameters, and `apply_gradient` passes the outer gradient to one reduction and one optimizer step. Communication
    therefore does not depend on the inner loop.
    """

    def __init__(
        self, module: nn.Module, training: TrainingConfig, deepspeed_config: dict[str, Any], process: Process
    ) -> None:
        """
        Args:
            module: model with full parameters, equal on every rank.
            deepspeed_config: complete configuration from `resolve_deepspeed_config`.
        """
        import deepspeed

        _check_deepspeed(version("deepspeed"))
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.process = process
        self._max_norm = training.max_grad_norm
        # state of the step that is being applied
        self._applying = False
        self._is_finite: Tensor | None = None
        self._norm: Tensor | None = None
        module.to(process.device)
        adamw = build_optimizer(module, training)
        adamw.register_step_pre_hook(self._pre_optim_step)
        _import_muon_uncompiled()
        self._engine, _, _, _ = deepspeed.initialize(model=module, optimizer=adamw, config=deepspeed_config)
        limit_collectives(collective_timeout(training.hang_timeout_seconds))
        self.stage = int(self._engine.zero_optimization_stage())
        self.parameters: dict[str, nn.Parameter] = dict(self._engine.module.named_parameters())

    def full_parameters(self, for_update: bool = False) -> dict[str, Tensor]:
        """Return all parameters, unsharded, in the precision of the run. Under ZeRO 3 every rank must call this.

        The tensors are valid until the next `apply_gradient`. Do not write to them, because they may share storage with
        the model.

        Args:
            for_update: whether `apply_gradient` follows. ZeRO 3 accepts gradients only while parameters are gathered.
        """
        if self.stage < 3:
            return {name: weight.detach() for name, weight in self.parameters.items()}
        import deepspeed

        self.process.started.add()
        with deepspeed.zero.GatheredParameters(list(self.parameters.values())):
            if for_update:
                for weight in self.parameters.values():
                    # a placeholder of the right shape that takes no memory
                    weight.grad = weight.data.new_zeros(()).expand_as(weight.data)
            return {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def apply_gradient(
        self, gradient: Mapping[str, Tensor], lr: float, is_finite: Bool[Tensor, ""] | None = None
    ) -> Float[Tensor, ""]:
        """Average a gradient over ranks, clip it, and take one optimizer step.

        If the gradient is not finite, weights and moments stay unchanged. The device decides this, so the host does not
        wait for it, except under ZeRO 3 and with offloading, where DeepSpeed waits.

        Args:
            gradient: gradient of this rank, in the precision of the run. The MEAN over ranks must be the outer
                gradient, so ranks with unequal numbers of tasks must have weighted theirs. DeepSpeed overwrites the
                tensors.
            is_finite: if False, weights and moments stay unchanged; equal on every rank.

        Returns:
            norm of the averaged gradient before clipping.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._is_finite, self._norm = is_finite, None
        self.process.started.add()
        if self.stage == 0:
            self._set_gradients(gradient)
            self._engine.allreduce_gradients()
            reduced = [weight.grad for weight in self.parameters.values() if weight.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(reduced)
        else:
            # without a backward pass, leaving this block reduces the content of .grad once
            with self._engine.coalesce_grad_reduction():
                self._set_gradients(gradient)
            self._norm = norm_before_step(self._engine.optimizer, self.stage, self.process)
        self._applying = True
        self._engine.step()
        self._applying = False
        # None if DeepSpeed skipped the update because the gradient was not finite
        return torch.tensor(math.inf) if self._norm is None else self._norm

    def _pre_optim_step(self, adamw: Any, *_: object) -> None:
        """Set the attributes through which AdamW scales the gradient and skips a step, as torch's GradScaler does."""
        if not self._applying:
            return  # DeepSpeed takes an extra step to create the moments
        if self._norm is None:
            self._norm = norm_within_step(self._engine.optimizer)
        # ZeRO 3 updates one part of the parameters at a time, and the other groups are empty
        device = next(weight.device for group in adamw.param_groups for weight in group["params"])
        norm = self._norm.to(device, torch.float32)
        is_finite = norm.isfinite() if self._is_finite is None else norm.isfinite() & self._is_finite.to(device)
        adamw.found_inf = (~is_finite).float()
        if self._max_norm:
            adamw.grad_scale = ((norm + 1e-6) / self._max_norm).clamp(min=1.0)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of DeepSpeed: AdamW under stage 0, otherwise a wrapper around AdamW."""
        return self._engine.optimizer

    def set_counters(self, steps: int) -> None:
        """Set the step counters of DeepSpeed. For DeepSpeed, a step is one sample on every rank."""
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
    """Import DeepSpeed's Muon optimizer without importing inductor.

    `deepspeed.initialize` imports this module, although no run uses Muon. Its functions are decorated with
    `torch.compile`, which imports inductor and takes 0.8 s of CPU time on every rank.
    `tests/end_to_end/test_imports.py` checks that inductor is not imported.
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
            f"DeepSpeed {found} is installed, but pico_ds depends on private state of DeepSpeed 0.19.8 and later 0.19 "
            "releases; run pip install 'deepspeed>=0.19.8,<0.20'"
        )
