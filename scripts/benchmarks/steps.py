"""Times outer steps of the package on random tokens, and plain forward and backward passes of the same network."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F

from pico_ds.config import RunConfig
from pico_ds.config.deepspeed_config import resolve_deepspeed_config
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.data.rows import ShuffledRows, TokenRows
from pico_ds.data.token_stream import TokenStream
from pico_ds.engine.distributed import Process
from pico_ds.engine.meta_engine import MetaEngine
from pico_ds.meta.episode_model import task_leaves
from pico_ds.meta.functional_model_builder import build_functional_model
from pico_ds.meta.gradient_sum import GradientSum
from pico_ds.meta.learners import EpisodeBatch, make_learner
from pico_ds.meta.meta_model_builder import build_meta_model
from pico_ds.model.flops import context_flops, language_model_flops, peak_flops
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.tasks.masked_word_tasks import SMLMT
from pico_ds.training.step_metrics import StepMetrics
from pico_ds.training.train_step import TrainStep
from pico_ds.training.trainer import Trainer

#: number of steps before the timed ones, for compilation and the first allocations
WARM_UP = 3


@dataclass(frozen=True)
class Workload:
    """The work of one step on each rank.

    Attributes:
        kind: "lm" for rows of a language model, "task" for contexts of tasks.
        rows: rows of a micro-batch, or contexts of a support set, and also of a query set.
        length: length of a row or context [tokens].
        tasks: number of tasks in a step.
        inner_steps: number of inner steps per task.
        adapt, head: values of meta.adapt and meta.head.
        micro_batches: number of micro-batches of rows in a step.
        k_shot: contexts per class, both in the support set and in the query set.
    """

    kind: Literal["lm", "task"]
    rows: int
    length: int
    tasks: int = 1
    inner_steps: int = 1
    adapt: str = "all"
    head: str = "linear"
    micro_batches: int = 1
    k_shot: int = 1

    def overrides(self, world_size: int) -> list[str]:
        """Return the overrides that configure these steps, without metrics that need extra passes."""
        common = ["monitoring.log_every_n_steps=1000000", "training.max_steps=1000000", "evaluation.n_tasks=0"]
        if self.kind == "lm":
            rows = self.rows * self.micro_batches * world_size
            count = [f"training.global_batch_size={rows}", f"training.micro_batch_size={self.rows}"]
            return [*common, *count, "smlmt.hybrid_ratio=0", f"data.sequence_length={self.length}"]
        sets = [
            f"smlmt.n_way={self.rows // self.k_shot}",
            f"smlmt.k_shot={self.k_shot}",
            f"smlmt.q_query={self.k_shot}",
        ]
        task = [f"meta.inner_steps={self.inner_steps}", f"meta.adapt={self.adapt}", f"meta.head={self.head}"]
        task += [f"meta.tasks_per_step={self.tasks * world_size}", "smlmt.hybrid_ratio=1", "smlmt.warmup_steps=0"]
        return [*common, *sets, *task, f"smlmt.context_tokens={self.length - LAYOUT_EXTRA_TOKENS}"]

    @property
    def passes(self) -> int:
        """Number of forward and backward passes in a step, if an inner step were only one pass over a set."""
        return self.micro_batches if self.kind == "lm" else self.tasks * (self.inner_steps + 1)


class _RandomTasks:
    """Cycles through a few tasks of random tokens, so that the time of sampling is not measured."""

    readout = "fim"

    def __init__(self, workload: Workload, vocab_size: int) -> None:
        self.sequence_length = workload.length
        rng = np.random.default_rng(0)

        def contexts() -> Contexts:
            ids = torch.from_numpy(rng.integers(0, vocab_size, (workload.rows, workload.length)))
            lengths = torch.full((workload.rows,), workload.length)
            return Contexts(ids, lengths, lengths - 1, torch.arange(workload.rows) // workload.k_shot)

        words = tuple(map(str, range(workload.rows // workload.k_shot)))
        tokens = torch.arange(len(words))[:, None]
        self._episodes = [Episode(contexts(), contexts(), words, tokens, keys=(i,)) for i in range(4)]

    def sample(self, step: int, index: int) -> Episode:
        return self._episodes[index % len(self._episodes)]


class StepBenchmark:
    """Measures steps of one model in an engine, and plain passes of its network without an engine."""

    def __init__(
        self,
        config: RunConfig,
        deepspeed_json: dict[str, Any],
        workload: Workload,
        process: Process,
        tasks: SMLMT | None = None,
    ) -> None:
        """
        Args:
            config: configuration that includes `workload.overrides`.
            tasks: source of sampled tasks; None uses tasks of random tokens.
        """
        self.config, self.workload, self.process = config, workload, process
        vocab_size = config.model.vocab_size
        assert vocab_size is not None
        self.vocab_size = vocab_size
        module = build_meta_model(
            config.model, config.meta, config.smlmt.n_ways[1], vocab_size, seed=0, device=process.device
        )
        settings = resolve_deepspeed_config(deepspeed_json, config, process.world_size)
        self.network = build_functional_model(config, vocab_size, process.device)
        self.engine = MetaEngine(module, config.training, settings, process)
        count = max(64 * workload.rows * workload.micro_batches * workload.length, config.data.sequence_length)
        tokens = np.random.default_rng(0).integers(0, vocab_size, count + 1)
        self._rows = TokenRows(TokenStream(tokens, np.array([len(tokens)])), config.data.sequence_length)
        self._tasks = tasks if tasks is not None else cast(SMLMT, _RandomTasks(workload, vocab_size))
        self.learner = make_learner(config.meta, self.network.skeleton.decoder)
        rows = ShuffledRows(self._rows, seed=0)
        outer_step = TrainStep(config, self.network, self.learner, rows, self._tasks, process)
        self.trainer = Trainer(config, self.engine, outer_step, [])
        # skip step 0, because the first step of a log window computes metrics that need extra passes
        self.trainer.state.step = 1

    def measure(self, steps: int, repeats: int) -> dict[str, Any]:
        """Return medians over `repeats` timings of `steps` outer steps each. Every rank must call this."""
        taken: list[StepMetrics] = []
        seconds, peak_memory_gib = self._timed(lambda: taken.append(self.trainer.take_step()), steps, repeats)
        self.trainer.synchronize()
        skipped = self.trainer.state.skipped_steps
        assert skipped == 0, f"{skipped} of {len(taken)} steps were skipped as not finite, so the timing is not valid"
        workload, world_size = self.workload, self.process.world_size
        tokens = workload.rows * workload.length
        tokens *= 2 * workload.tasks if workload.kind == "task" else workload.micro_batches
        timed = taken[WARM_UP:]
        found: dict[str, Any] = {
            "stage": self.engine.stage,
            "world_size": world_size,
            "seconds_per_step": seconds,
            "tokens_per_second": tokens * world_size / seconds,
            "tasks_per_second": workload.tasks * world_size / seconds if workload.kind == "task" else None,
            "data_wait_fraction": sum(m.data_wait_seconds for m in timed) / sum(m.seconds for m in timed),
            "peak_memory_gib": peak_memory_gib,
        }
        peak = peak_flops(self.process.device)
        found["model_flops_utilization"] = self.flops() / seconds / peak if peak else None
        return found

    def measure_plain(self, steps: int, repeats: int, step_seconds: float) -> dict[str, Any]:
        """Return the time and memory of plain forward and backward passes, and how a step compares with them.

        The passes use the same kernels, but no engine, no update and no gradient accumulation.
        """
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
        return {
            "plain_seconds_per_pass": seconds,
            "plain_peak_memory_gib": peak_memory_gib,
            "over_plain": step_seconds / (self.workload.passes * seconds),
        }

    def measure_loop(self, step_seconds: float) -> dict[str, Any]:
        """Return the time of a plain PyTorch loop over the same tasks, without compilation."""
        config = self.config.model_copy(
            update={"training": self.config.training.model_copy(update={"compile": "none"})}
        )
        network = build_functional_model(config, self.vocab_size, self.process.device)
        theta = self.engine.full_parameters()
        episodes = [self._tasks.sample(0, i).to(self.process.device) for i in range(self.workload.tasks)]

        def loop() -> None:
            total = GradientSum(theta)
            for episode in episodes:
                batch = EpisodeBatch(network, theta, episode, self._tasks.readout, measure=False)
                self.learner.add_gradient(batch, total, scale=1.0)

        seconds, _ = self._timed(loop, steps=1, repeats=1, warm_up=1)
        return {"loop_seconds": seconds, "loop_over_step": seconds / step_seconds}

    def flops(self) -> float:
        """Return the FLOPs of one step on one rank."""
        workload, model = self.workload, self.config.model
        if workload.kind == "lm":
            rows = workload.rows * workload.micro_batches
            return language_model_flops(model, self.vocab_size, rows, workload.length)
        pass_counts = self.learner.pass_counts(step=0)
        contexts = workload.tasks * workload.rows * (pass_counts.support + pass_counts.query)
        return contexts * context_flops(model, self.vocab_size, workload.length)

    def _timed(
        self, action: Callable[[], object], steps: int, repeats: int, warm_up: int = WARM_UP
    ) -> tuple[float, float | None]:
        for _ in range(warm_up):
            action()
        cuda = self.process.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        each = []
        for _ in range(repeats):
            self.synchronize_ranks()
            started = time.perf_counter()
            for _ in range(steps):
                action()
            self.synchronize_ranks()
            each.append((time.perf_counter() - started) / steps)
        return median(each), torch.cuda.max_memory_allocated() / 2**30 if cuda else None

    def synchronize_ranks(self) -> None:
        """Wait until every rank and its device have finished their work. Every rank must call this."""
        self.process.wait_for_all()
        if self.process.device.type == "cuda":
            torch.cuda.synchronize()
