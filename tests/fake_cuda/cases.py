"""Runs steps, evaluations and snapshots on the fake device: `python -m tests.fake_cuda.cases GUARD OUT GROUP ...`."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tests.fake_cuda.device_guard import load_guard

if __name__ == "__main__":
    load_guard(Path(sys.argv[1]))

import torch
from torch import Tensor

from pico_ds.config import ConfigError, RunConfig, load_config
from pico_ds.config.deepspeed_config import load_deepspeed_config
from pico_ds.config.validation import LAYOUT_EXTRA_TOKENS
from pico_ds.dynamics.recorder import SnapshotRecorder
from pico_ds.engine.distributed import Process
from pico_ds.evaluation.few_shot import evaluate_few_shot
from pico_ds.evaluation.validation_loss import evaluate_validation_loss
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.heads import HEADS
from pico_ds.meta.learners import LEARNERS, make_learner
from pico_ds.meta.meta_model_builder import build_model_skeleton
from pico_ds.model.precision import COMPUTE_DTYPE
from pico_ds.planning.run_plan import make_plan
from pico_ds.tasks.episode import Contexts, Episode
from pico_ds.training.prefetch import Batch
from pico_ds.training.step_metrics import ReducedMetrics
from pico_ds.training.train_step import TrainStep
from tests.fake_cuda.fake_device import CUDA, FakeEvent, fake_device, flash_attention

REPOSITORY = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 512


class FakeProcess(Process):
    """One of several ranks, without the others."""

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Return the values of this rank."""
        return values

    def pinned(self, values: Tensor) -> Tensor:
        """Return the values, because fake host memory cannot be pinned."""
        return values


class FakeTasks:
    """Tasks of the configured shape, without values."""

    readout = "fim"

    def __init__(self, config: RunConfig) -> None:
        self._config = config.smlmt
        self.sequence_length = config.smlmt.context_tokens + LAYOUT_EXTRA_TOKENS

    def sample(self, step: int, index: int) -> Episode:
        """Return a task."""
        config = self._config
        n_way = config.n_ways[1]

        def contexts(per_class: int) -> Contexts:
            count = n_way * per_class
            ids = torch.zeros(count, self.sequence_length, dtype=torch.int64)
            return Contexts(ids, *(torch.zeros(count, dtype=torch.int64) for _ in range(3)))

        words = tuple(map(str, range(n_way)))
        tokens = torch.zeros(n_way, 2, dtype=torch.int64)
        return Episode(contexts(config.k_shots[1]), contexts(config.q_query), words, tokens, keys=(index,))


class FakeRows:
    """Rows of the configured length, without values."""

    n_rows = 8

    def __init__(self, config: RunConfig) -> None:
        self.sequence_length = config.data.sequence_length

    def read(self, indices: Any) -> Tensor:
        """Return rows."""
        return torch.zeros(len(indices), self.sequence_length + 1, dtype=torch.int64)

    def take(self, first: int, count: int, *_: int) -> Tensor:
        """Return rows."""
        return self.read(range(count))


class FixedBatch:
    """Replaces the prefetcher."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def take(self, step: int, first_row: int) -> tuple[Batch, float]:
        """Return the batch."""
        return self._batch, 0.0


class Case:
    """A configuration on the fake device, on one of several ranks."""

    def __init__(self, config: str, *overrides: str, world_size: int = 2) -> None:
        """
        Raises:
            ConfigError: the overrides do not work together.
        """
        self.config = load_config(REPOSITORY / "configs" / f"{config}.yaml", [*overrides])
        self.dtype = COMPUTE_DTYPE[self.config.training.precision]
        model = self.config.model
        self.network = FunctionalModel(
            build_model_skeleton(
                model,
                self.config.meta,
                self.config.smlmt.n_ways[1],
                model.vocab_size or VOCAB_SIZE,
                flash_attention,
                self.config.training.activation_checkpointing,
            ),
            self.dtype,
            self.config.meta.feature_squared_norm,
            attend_batch=flash_attention,
        )
        self.learner = make_learner(self.config.meta, self.network.skeleton.decoder)
        self.process = FakeProcess(0, world_size, 0, CUDA)
        self.tasks = FakeTasks(self.config)
        self.rows = FakeRows(self.config)

    def theta(self) -> dict[str, Tensor]:
        """Return weights, which must be created on the fake device."""
        named = self.network.skeleton.named_parameters()
        return {name: torch.empty(weight.shape, dtype=self.dtype, device=CUDA) for name, weight in named}

    def step(self, kind: str, measure: bool, tasks: int = 3) -> dict[str, Any]:
        """Compute one step and its metrics. Returns waits and memory."""
        # chooses the number of tasks per batch by a forward pass on the meta device
        step = TrainStep(self.config, self.network, self.learner, self.rows, self.tasks, self.process)  # type: ignore[arg-type]
        with fake_device() as device:
            theta = self.theta()
            weight_bytes = device.live_bytes
            if kind == "ar":
                share = -(-self.config.training.global_batch_size // self.process.world_size)
                batch = Batch(self.rows.read(range(share)), [])
            else:
                batch = Batch(None, [self.tasks.sample(0, index) for index in range(tasks)])
            step._prefetcher = FixedBatch(batch)  # type: ignore[assignment]
            local = step.compute(kind, theta, 10**6, 0, measure, by_layer=measure)  # type: ignore[arg-type]
            reduced = ReducedMetrics(local.contributions, {"stop": 0.0}, self.process)
            assert reduced.finite.device == CUDA
            for name, gradient in local.gradient.items():
                weight = theta[name]
                assert (gradient.device, gradient.dtype, gradient.shape) == (CUDA, weight.dtype, weight.shape), name
                # DeepSpeed flattens gradients by .view(-1)
                assert gradient.is_contiguous(), name
            return {
                "waits": dict(device.waits),
                "weight_bytes": weight_bytes,
                "peak_bytes": device.peak_bytes,
                "tasks_per_batch": step._tasks_per_batch,
            }

    def evaluation(self) -> dict[str, Any]:
        """Evaluate two tasks and four rows. Returns waits."""
        with fake_device() as device:
            theta, process = self.theta(), replace(self.process, world_size=1)
            evaluate_few_shot(self.network, self.learner, theta, self.tasks, 2, 2, process, lambda: True)  # type: ignore[arg-type]
            evaluate_validation_loss(self.network, theta, self.rows, 4, 2, process, lambda: True)  # type: ignore[arg-type]
            return {"waits": dict(device.waits)}

    def snapshot(self) -> dict[str, Any]:
        """Take a snapshot. Returns waits."""
        with fake_device() as device:
            recorder = SnapshotRecorder(
                self.config,
                self.network,
                self.learner,
                self.rows,
                self.rows,
                self.tasks,
                self.process,  # type: ignore[arg-type]
            )
            recorder.take(self.theta(), 0, 0)
            return {"waits": dict(device.waits)}

    def plan(self, kind: str) -> dict[str, int]:
        """Return the planned bytes of the gradient of a step, without the optimizer."""
        deepspeed_json = load_deepspeed_config(REPOSITORY / "ds_configs" / "zero1.json")
        vocab_size = self.network.skeleton.decoder.de_embedding_proj.out_features
        parts = make_plan(self.config, deepspeed_json, vocab_size, self.process.world_size).memory[kind]  # type: ignore[index]
        return {name: size for name, size in parts.items() if name not in ("master weights", "AdamW moments")}


#: settings of the inner loop that have their own code
OPTIONS = {
    "step losses": ["meta.multi_step_loss=true", "meta.multi_step_loss_annealing_steps=10"],
    "momentum and clipping": ["meta.inner_momentum=0.9", "meta.inner_max_grad_norm=1"],
    "last block": ["meta.adapt=last_1_blocks", "model.n_layers=2"],
    "rates by layer": ["meta.learner=meta_sgd", "meta.learned_rates=layer"],
    "readout mean": ["smlmt.readout=mean"],
    "recomputed blocks": ["training.activation_checkpointing=block", "meta.tasks_per_batch=1"],
    "recomputed layers": ["training.activation_checkpointing=selective", "meta.tasks_per_batch=1"],
}
SMALL = ["model.n_layers=1", "meta.tasks_per_batch=2", "meta.inner_steps=2", "training.precision=bf16"]


def steps(precision: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield a step of every learner with every head. Two of the three tasks share a batch."""
    for learner, head in product(LEARNERS, HEADS):
        overrides = [f"meta.learner={learner}", f"meta.head={head}", f"training.precision={precision}"]
        kind = "ar" if learner == "ar" else "meta"
        if (case := _case("demo", *SMALL, "meta.vocab_head_dropout=0.1", *overrides)) is not None:
            yield f"{learner}, {head}, {precision}", partial(case.step, kind, measure=True)


def options() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield a step with each option, and steps that compute no additional metrics."""
    for name, overrides in OPTIONS.items():
        case = Case("demo", *SMALL, *overrides)
        yield name, partial(case.step, "meta", measure=True)
        yield f"{name}, rows", partial(case.step, "ar", measure=False)
    yield "unmeasured", partial(Case("demo", *SMALL).step, "meta", measure=False)


def wide() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield steps, an evaluation and a snapshot at the widths of the 1B configuration."""
    case = Case("pico-maml-1b", "model.n_layers=1", "meta.inner_steps=2", "learning_dynamics.n_tasks=2")
    yield "1b, meta", partial(case.step, "meta", measure=True)
    yield "1b, ar", partial(case.step, "ar", measure=True)
    yield "1b, evaluation", case.evaluation
    yield "1b, snapshot", case.snapshot


def memory() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the steps of one of 64 ranks with the complete 1B model, with their plan."""
    # the number of inner steps does not change the peak
    case = Case("pico-maml-1b", "meta.inner_steps=2", world_size=64)
    for kind in ("ar", "meta"):
        yield f"1b, {kind}", lambda kind=kind: {**case.step(kind, measure=False, tasks=1), "plan": case.plan(kind)}


def faults() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield operations that the fake device must notice."""

    def noticed(work: Callable[[Tensor], object]) -> dict[str, Any]:
        with fake_device() as device:
            work(torch.zeros(4, 4, device=CUDA))
            return {"waits": dict(device.waits), "peak_bytes": device.peak_bytes}

    yield "item", partial(noticed, lambda weight: weight.sum().item())
    yield "condition", partial(noticed, lambda weight: bool(weight.any()))
    yield "list", partial(noticed, lambda weight: weight.tolist())
    yield "copy to host", partial(noticed, lambda weight: weight.cpu())
    yield "copy to device", partial(noticed, lambda weight: torch.zeros(4).to(weight.device))
    yield "copy that does not block", partial(noticed, lambda weight: weight.to("cpu", non_blocking=True))
    yield "tensor of the host", partial(noticed, lambda weight: weight @ torch.zeros(4, 4))
    yield "another type", partial(noticed, lambda weight: weight @ weight.bfloat16())
    yield "two tensors", partial(noticed, lambda weight: weight + 1)


def _case(config: str, *overrides: str) -> Case | None:
    try:
        return Case(config, *overrides)
    except ConfigError:
        # the configuration rejects some learners with some heads
        return None


GROUPS: dict[str, Callable[[], Iterator[tuple[str, Callable[[], dict[str, Any]]]]]] = {
    "bf16": partial(steps, "bf16"),
    "fp32": partial(steps, "fp32"),
    "options": options,
    "wide": wide,
    "memory": memory,
    "faults": faults,
}


def main() -> int:
    """Run the cases of some groups. Writes the result, or the error, of each case by name."""
    _, _, out, *groups = sys.argv
    torch.cuda.Event = FakeEvent  # type: ignore[assignment,misc]
    results: dict[str, Any] = {}
    for group in groups:
        for name, run in GROUPS[group]():
            try:
                results[name] = run()
            except (RuntimeError, TypeError, AssertionError) as error:
                results[name] = {"error": f"{type(error).__name__}: {error}"}
    Path(out).write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
