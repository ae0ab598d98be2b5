"""Reads and writes the optimizer state of this rank as fragments of parameters, under every ZeRO stage.

Training can resume from the master weights and moments, because DeepSpeed derives all other state from them. Only this
module accesses them. The access differs by stage and uses private state of DeepSpeed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pico_ds.engine.meta_engine import MetaEngine

StateKind = Literal["master", "exp_avg", "exp_avg_sq"]
MOMENTS: tuple[StateKind, ...] = ("exp_avg", "exp_avg_sq")
#: fp32 master weights, and AdamW's first and second moment
STATE_KINDS: tuple[StateKind, ...] = ("master", *MOMENTS)


@dataclass(frozen=True)
class Fragment:
    """A contiguous piece of one parameter, flattened.

    Attributes:
        name: name of the parameter.
        shape: shape of the whole parameter.
        offset, length: position and length of the piece [elements].
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    length: int


class OptimizerState:
    """Reads and writes this rank's fragments of master weights and moments."""

    def __init__(self, engine: MetaEngine) -> None:
        self.engine = engine
        self._parameters = engine.parameters
        fragments = [self._fragment(name, weight) for name, weight in self._parameters.items()]
        #: shape of every parameter of the model, even if this rank holds no part of it
        self.shapes = {fragment.name: fragment.shape for fragment in fragments}
        #: host memory for values that are copied to the device
        self._staging = torch.empty(0)
        #: fragments that this rank saves, in parameter order. The fragments of all ranks cover each parameter once
        self.fragments = [fragment for fragment in fragments if fragment.length > 0]

    @property
    def fragments_to_load(self) -> list[Fragment]:
        """Fragments that this rank must load to resume: those that it saves, or all parameters under stage 0."""
        if self.engine.stage > 0:
            return self.fragments
        return [Fragment(name, tuple(weight.shape), 0, weight.numel()) for name, weight in self._parameters.items()]

    def _fragment(self, name: str, weight: nn.Parameter) -> Fragment:
        process = self.engine.process
        if self.engine.stage == 0:
            # every rank holds all parameters, and saves an equal part
            total = weight.numel()
            first, end = (total * part // process.world_size for part in (process.rank, process.rank + 1))
            return Fragment(name, tuple(weight.shape), first, end - first)
        partitioned: Any = weight
        if self.engine.stage == 3:
            width = partitioned.partition_numel()
            first = process.rank * width
            # partitions have equal width, so the last ones contain padding
            length = max(0, min(width, partitioned.ds_numel - first))
            return Fragment(name, tuple(partitioned.ds_shape), first, length)
        mapping = partitioned._hp_mapping
        if mapping is None:
            return Fragment(name, tuple(weight.shape), 0, 0)
        address = mapping.lp_fragment_address
        return Fragment(name, tuple(weight.shape), address.start, address.numel)

    def read(self, fragment: Fragment, kind: StateKind) -> Tensor:
        """Return the values of a fragment: a flat fp32 view of the live state, on its device."""
        weight: Any = self._parameters[fragment.name]
        optimizer: Any = self.engine.optimizer
        if self.engine.stage == 0:
            flat, start = weight, fragment.offset
        elif self.engine.stage == 3:
            # DeepSpeed's accessor would copy an offloaded partition to the GPU
            group, start, _ = optimizer.grad_position[optimizer.get_param_id(weight)]
            flat = optimizer.fp32_partitioned_groups_flat[group]
        else:
            # DeepSpeed's mapping links moments in its first step, and only those of the first parameter group
            flat = optimizer.single_partition_of_fp32_groups[weight._hp_mapping.param_group_index]
            start = weight._hp_mapping.get_hp_fragment_address().start
        values = flat if kind == "master" else self._adamw().state[flat][kind]
        return values.detach().view(-1).narrow(0, start, fragment.length)

    def fill(self, fragment: Fragment, kind: StateKind, read_into: Callable[[Tensor], None]) -> None:
        """Replace the values of a fragment.

        Args:
            read_into: writes the values into a flat fp32 tensor in host memory, which may be the live state.
        """
        values = self.read(fragment, kind)
        if values.device.type == "cpu":
            read_into(values)
            return
        if len(self._staging) < fragment.length:
            self._staging = torch.empty(fragment.length)
        read_into(self._staging[: fragment.length])
        values.copy_(self._staging[: fragment.length])

    @property
    def steps(self) -> int:
        """Number of steps that the optimizer has taken, on which its bias correction depends."""
        counts = {int(state["step"]) for state in self._adamw().state.values() if "step" in state}
        assert len(counts) <= 1, f"parameters have different step counts: {sorted(counts)}"
        return counts.pop() if counts else 0

    def set_steps(self, steps: int) -> None:
        """Set the number of steps that the optimizer has taken."""
        for state in self._adamw().state.values():
            state["step"].fill_(steps)
        self.engine.set_counters(steps)

    def apply_master_weights(self) -> None:
        """Copy the master weights into the model, bit for bit, and create the moments. Every rank must call this."""
        if self.engine.stage == 3:
            # a step with a zero gradient and a zero learning rate changes no weight
            theta = self.engine.full_parameters(for_update=True)
            self.engine.apply_gradient({name: torch.zeros_like(weight) for name, weight in theta.items()}, lr=0.0)
            return
        inner = self._adamw()
        for group in inner.param_groups:
            for weight in group["params"]:
                inner.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                    **{kind: torch.zeros_like(weight.detach()) for kind in MOMENTS},
                }
        if self.engine.stage > 0:
            optimizer: Any = self.engine.optimizer
            optimizer.update_lp_params()

    def _adamw(self) -> torch.optim.Optimizer:
        optimizer: Any = self.engine.optimizer
        return getattr(optimizer, "optimizer", optimizer)
