"""Outer steps of the product itself, on random tokens, beside plain forward and backward passes of the same network."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F

from pico_ds.config import RunConfig
from pico_ds.config.deepspeed import resolve_deepspeed_config
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.corpus import TokenStream
from pico_ds.data.rows import ShuffledRows, TokenRows
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.meta.inner_loop import task_leaves
from pico_ds.model.flops import language_model_flops, peak_flops, task_flops
from pico_ds.model.meta_model import build_meta_model
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.smlmt import SMLMT
from pico_ds.training.assembly import build_network
from pico_ds.training.outer_step import OuterStep
from pico_ds.training.trainer import Trainer

#: steps before the first that counts: compilation, and the first allocations
_WARM_UP = 3


@dataclass(frozen=True)
class Workload:
    """What one step does, on each rank.

    Attributes:
        kind: lm: rows of a language model; task: contexts of tasks.
        rows: rows of a step, or contexts of a support and of a query set.
        length: of each [tokens].
        tasks: of a step.
        inner_steps: of each.
        adapt: as meta.adapt.
    """

    kind: Literal["lm", "task"]
    rows: int
    length: int
    tasks: int = 1
    inner_steps: int = 1
    adapt: str = "all"

    def overrides(self, world_size: int) -> list[str]:
        """The configuration that has these steps, and no metrics that cost extra passes."""
        common = ["monitoring.log_every_n_steps=1000000", "training.max_steps=1000000", "evaluation.n_tasks=0"]
        if self.kind == "lm":
            count = [f"training.global_batch_size={self.rows * world_size}", f"training.micro_batch_size={self.rows}"]
            return [*common, *count, "smlmt.hybrid_ratio=0", f"data.sequence_length={self.length}"]
        sets = [f"smlmt.n_way={self.rows}", "smlmt.k_shot=1", "smlmt.q_query=1"]
        task = [f"meta.inner_steps={self.inner_steps}", f"meta.adapt={self.adapt}", "meta.head=linear"]
        task += [f"meta.tasks_per_step={self.tasks * world_size}", "smlmt.hybrid_ratio=1", "smlmt.warmup_steps=0"]
        return [*common, *sets, *task, f"smlmt.context_tokens={self.length - LAYOUT_EXTRA_TOKENS}"]

    @property
    def passes(self) -> int:
        """Forward and backward passes of a step over a set, were the inner loop nothing but that."""
        return 1 if self.kind == "lm" else self.tasks * (self.inner_steps + 1)


class _RandomTasks:
    """A few tasks of random tokens, again and again: sampling is measured on its own."""

    readout = "fim"

    def __init__(self, workload: Workload, vocab_size: int) -> None:
        self.sequence_length = workload.length
        rng = np.random.default_rng(0)

        def contexts() -> Contexts:
            ids = torch.from_numpy(rng.integers(0, vocab_size, (workload.rows, workload.length)))
            lengths = torch.full((workload.rows,), workload.length)
            return Contexts(ids, lengths, lengths - 1, torch.arange(workload.rows))

        words = tuple(map(str, range(workload.rows)))
        self._episodes = [Episode(contexts(), contexts(), words) for _ in range(4)]

    def sample(self, step: int, index: int) -> Episode:
        return self._episodes[index % len(self._episodes)]


class StepBenchmark:
    """One model in one engine, and the same network without an engine."""

    def __init__(self, config: RunConfig, deepspeed_json: dict[str, Any], workload: Workload, process: Process) -> None:
        """
        Args:
            config: with `workload.overrides`.
        """
        self.config, self.workload, self.process = config, workload, process
        vocab_size = config.model.vocab_size
        assert vocab_size is not None
        self.vocab_size = vocab_size
        module = build_meta_model(config.model, config.meta, config.smlmt.n_way, vocab_size, seed=0)
        settings = resolve_deepspeed_config(deepspeed_json, config, process.world_size)
        self.network = build_network(config, vocab_size, process)
        self.engine = MetaEngine(module, config.training, settings, process)
        tokens = np.random.default_rng(0).integers(0, vocab_size, 64 * workload.rows * workload.length + 1)
        self._rows = TokenRows(TokenStream(tokens, np.array([len(tokens)])), config.data.sequence_length)
        tasks = cast(SMLMT, _RandomTasks(workload, vocab_size))
        outer_step = OuterStep(config, self.network, ShuffledRows(self._rows, seed=0), tasks, process)
        self.trainer = Trainer(config, self.engine, outer_step, [])

    def measure(self, steps: int, repeats: int) -> dict[str, Any]:
        """Medians of `repeats` times `steps` steps. A collective."""
        seconds, peak_memory_gib = self._timed(self.trainer.take_step, steps, repeats)
        workload, world_size = self.workload, self.process.world_size
        tokens = workload.rows * workload.length
        if workload.kind == "task":
            tokens *= 2 * workload.tasks
        found: dict[str, Any] = {
            "stage": self.engine.stage,
            "world_size": world_size,
            "seconds_per_step": seconds,
            "tokens_per_second": tokens * world_size / seconds,
            "tasks_per_second": workload.tasks * world_size / seconds if workload.kind == "task" else None,
            "peak_memory_gib": peak_memory_gib,
        }
        peak = peak_flops(self.process.device)
        found["model_flops_utilization"] = self._flops() / seconds / peak if peak else None
        return found

    def measure_plain(self, steps: int, repeats: int) -> dict[str, Any]:
        """Forward and backward passes alone, with the same kernels: no engine, no update, no accumulation."""
        theta = self.engine.full_parameters()
        if self.workload.kind == "lm":
            rows = self._rows.read(np.arange(self.workload.rows)).to(self.process.device)
            leaves = {
                name: weight.detach().requires_grad_() for name, weight in theta.items() if not name.startswith("head.")
            }

            def loss() -> torch.Tensor:
                return self.network.language_model_loss(leaves, rows)
        else:
            contexts = _RandomTasks(self.workload, self.vocab_size).sample(0, 0).support.to(self.process.device)
            leaves = task_leaves(theta)
            head = torch.randn(len(contexts.labels), self.config.model.d_model, device=self.process.device)

            def loss() -> torch.Tensor:
                return F.cross_entropy(F.linear(self.network.features(leaves, contexts, "fim"), head), contexts.labels)

        weights = list(leaves.values())
        seconds, peak_memory_gib = self._timed(lambda: torch.autograd.grad(loss(), weights), steps, repeats)
        return {"plain_seconds_per_pass": seconds, "plain_peak_memory_gib": peak_memory_gib}

    def _flops(self) -> float:
        """Of one rank's step."""
        workload, model = self.workload, self.config.model
        if workload.kind == "lm":
            return language_model_flops(model, self.vocab_size, workload.rows, workload.length)
        each = task_flops(
            model,
            self.vocab_size,
            workload.rows,
            workload.rows,
            workload.length,
            workload.inner_steps,
            adapts_body=workload.adapt != "head",
            prototypes=False,
        )
        return workload.tasks * each

    def _timed(self, action: Callable[[], object], steps: int, repeats: int) -> tuple[float, float | None]:
        for _ in range(_WARM_UP):
            action()
        cuda = self.process.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        each = []
        for _ in range(repeats):
            self._together()
            started = time.perf_counter()
            for _ in range(steps):
                action()
            self._together()
            each.append((time.perf_counter() - started) / steps)
        return median(each), torch.cuda.max_memory_allocated() / 2**30 if cuda else None

    def _together(self) -> None:
        self.process.wait_for_all()
        if self.process.device.type == "cuda":
            torch.cuda.synchronize()
