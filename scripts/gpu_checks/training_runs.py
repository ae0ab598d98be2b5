"""Trains the demo, resumes it, kills it, and compares its snapshots with those of the CPU."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from pico_ds.evaluation.evaluator import EvaluationResult

from .results import Result, at_least, at_most, figure

REPOSITORY = Path(__file__).resolve().parents[2]
#: a few steps of the demo, of which the first two are autoregressive
_SHORT = (
    "training.max_steps=8",
    "smlmt.warmup_steps=2",
    "evaluation.n_tasks=0",
    "monitoring.log_every_n_steps=1",
)
#: a model and tasks that take seconds on a CPU
_TOY = (
    *("model.d_model=24", "model.n_layers=2", "model.activation_hidden_dim=48", "training.global_batch_size=2"),
    *("meta.tasks_per_step=2", "evaluation.n_tasks=2", "learning_dynamics.n_rows=2"),
)
_POLL_SECONDS = 0.05


class DemoRuns:
    """Runs of the demo in one directory.

    Attributes:
        toy: whether the runs use a smaller model and fewer tasks.
    """

    def __init__(self, directory: Path, ranks: int, toy: bool) -> None:
        self._directory, self._ranks, self.toy = directory, ranks, toy

    def run(self, name: str, *overrides: str, on_cpu: bool = False) -> Path:
        """Train a run to its end. Returns its directory."""
        done = self._start(name, overrides, on_cpu)
        output, _ = done.communicate()
        if done.returncode:
            raise RuntimeError(f"the run {name} ended with exit code {done.returncode}:\n{output[-3000:]}")
        return self._directory / name

    def kill(self, name: str, *overrides: str, when: Callable[[Path], bool]) -> Path:
        """Start a run, and kill all its processes as soon as `when` is true. Returns its directory."""
        started = self._start(name, overrides)
        while not when(self._directory / name):
            if started.poll() is not None:
                raise RuntimeError(f"the run {name} ended before it was killed: {started.communicate()[0][-3000:]}")
            time.sleep(_POLL_SECONDS)
        os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
        return self._directory / name

    def copy(self, source: Path, name: str) -> Path:
        """Copy a run."""
        return Path(shutil.copytree(source, self._directory / name, symlinks=True))

    def _start(self, name: str, overrides: Sequence[str], on_cpu: bool = False) -> "subprocess.Popen[str]":
        launcher = [sys.executable]
        if self._ranks > 1 and not on_cpu:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self._ranks)]
        command = [str(REPOSITORY / "scripts" / "train.py"), "--config", str(REPOSITORY / "configs" / "demo.yaml")]
        location = [f"checkpointing.runs_dir={self._directory}", f"checkpointing.run_name={name}"]
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        if on_cpu:
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        size = _TOY if self.toy else ()
        return subprocess.Popen(
            [*launcher, *command, *location, "monitoring.wandb.mode=disabled", *size, *overrides],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def check_resume(runs: DemoRuns) -> list[Result]:
    """Resume a run in bf16 in its middle, kill another one, and compare both with an undisturbed run."""
    settings = (*_SHORT, "training.precision=bf16", "checkpointing.save_every_n_steps=4")
    whole = runs.run("whole", *settings)
    resumed = runs.copy(whole, "resumed")
    shutil.rmtree(resumed / "checkpoints" / "step_8")
    runs.run("resumed", *settings, "checkpointing.resume=4")
    killed = runs.kill("killed", *settings, when=lambda run: (run / "checkpoints" / "step_4").exists())
    runs.run("killed", *settings)
    return [
        _equal_states("resumed at step 4, against an undisturbed run", resumed, whole),
        _equal_states("killed after step 4 and started again", killed, whole),
        figure("first step after", _first_step_seconds(whole), "s"),
    ]


def check_snapshots(runs: DemoRuns) -> list[Result]:
    """Compare the snapshot of equal weights on the device and on the CPU, in fp32."""
    short = ("training.max_steps=1", *_SHORT[1:], "training.precision=fp32")
    initial = runs.run("initial", *short, on_cpu=True)
    settings = (
        *short,
        f"model.init_from={initial / 'checkpoints' / 'step_1'}",
        "learning_dynamics.save_every_n_steps=1",
        "learning_dynamics.n_tasks=2",
    )
    cpu, device = runs.run("snapshots_cpu", *settings, on_cpu=True), runs.run("snapshots_device", *settings)
    results = []
    for kind in ("activations", "gradients", "weights"):
        expected, found = (
            load_file(run / "checkpoints" / "step_0" / "learning_dynamics" / f"val_{kind}.safetensors")
            for run in (cpu, device)
        )
        results.append(at_most(f"{kind} against those of the CPU: error", _relative_error(found, expected), 1e-3, ""))
    return results


def check_demo(runs: DemoRuns) -> list[Result]:
    """Train the demo from the start to the end."""
    started = time.monotonic()
    run = runs.run("demo", *(["training.max_steps=4", "smlmt.warmup_steps=2"] if runs.toy else []))
    seconds = time.monotonic() - started
    newest = max((run / "eval_results").glob("step_*.json"), key=lambda path: int(path.stem.removeprefix("step_")))
    few_shot = next(iter(EvaluationResult.read(newest).few_shot.values()))
    accuracy = 100 * sum(few_shot.before) / len(few_shot.before)
    return [
        figure("training and evaluations", seconds, "s"),
        # docs/learners.md: FOMAML reaches 61 % on the CPU, and an untrained model 29 to 37 %
        at_least("accuracy on held-out words", accuracy, 55, "%", applies=not runs.toy),
    ]


def _equal_states(name: str, run: Path, other: Path) -> Result:
    """Return whether weights, master weights and moments of step 8 are bit-identical."""
    states = [
        {
            (path.name, key): tensor
            for path in sorted((each / "checkpoints" / "step_8").rglob("*.safetensors"))
            for key, tensor in load_file(path).items()
        }
        for each in (run, other)
    ]
    same = states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )
    return Result(name, "bit-identical" if same else "different", "bit-identical", same)


def _first_step_seconds(run: Path) -> float:
    found = re.search(r"first step done ([\d.]+) s after the start", (run / "logs" / "train.log").read_text())
    return float(found[1]) if found else float("nan")


def _relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    difference = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    return (difference / sum(float(tensor.double().square().sum()) for tensor in expected.values())) ** 0.5
