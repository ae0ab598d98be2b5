"""The measurements of each benchmark command, and the processes that run them."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Rows = list[dict[str, Any]]

#: default world sizes of the command `scaling`
WORLD_SIZES = [1, 2, 4]


@dataclass(frozen=True)
class Measurement:
    """One measurement, which runs in one process per rank.

    Attributes:
        label: name of the table for its rows.
        measure: name of the measurement in the worker.
        options: additional command-line options of the worker.
        ranks: world size.
    """

    label: str
    measure: str
    options: dict[str, str] = field(default_factory=dict)
    ranks: int = 1


def measurements(arguments: argparse.Namespace) -> list[Measurement]:
    """Return the measurements of a command, in the order in which they run."""
    name = arguments.command
    ranks = arguments.ranks or {"checkpoint": [1, 2, 4], "comm": [2], "scaling": WORLD_SIZES}.get(name, [1])
    against = {"lm": "plain", "fomaml": "plain", "tasks": "loop"}
    if name == "memory":
        each = [{"label": "memory", "measure": "fomaml", "--tasks": "1"}, {"label": "memory", "measure": "lm"}]
        rows = [] if arguments.rows else [("--rows", "4")]
        return [
            Measurement(one.pop("label"), one.pop("measure"), {"--against": "nothing", **dict(rows), **one}, count)
            for one in each
            for count in ranks
        ]
    if name != "all":
        by_stage = {"lm": [1, 2, 3], "fomaml": [1, 2, 3], "snapshots": [1]}
        stages = arguments.stages or by_stage[name] if name in by_stage else [1]
        baseline = {"--against": arguments.against or against.get(name, "nothing")}
        return [Measurement(name, name, {**baseline, "--stage": str(stage)}, n) for n in ranks for stage in stages]

    def measurements_of(command: str, **changed: Any) -> list[Measurement]:
        return measurements(argparse.Namespace(**{**vars(arguments), "command": command, "ranks": None, **changed}))

    # ZeRO stage 2 comes last because it differs least from stage 1
    first, *others = arguments.stages or [1, 3, 2]
    prototype = Measurement("fomaml", "fomaml", {"--head": "prototype", "--against": "plain", "--stage": str(first)})
    accumulated = Measurement(
        "lm", "lm", {"--rows": str(2 * (arguments.rows or 8)), "--micro_batches": "4", "--stage": str(first)}
    )
    return [
        *measurements_of("lm", stages=[first]),
        *measurements_of("fomaml", stages=[first]),
        *measurements_of("tasks"),
        *measurements_of("head"),
        *measurements_of("memory"),
        *[
            each
            for stage in others
            for command in ("lm", "fomaml")
            for each in measurements_of(command, stages=[stage])
        ],
        accumulated,
        prototype,
        *measurements_of("attention"),
        *measurements_of("feeding"),
        *measurements_of("sampling"),
        *measurements_of("comm"),
    ]


def run(arguments: argparse.Namespace, measurement: Measurement, script: str) -> Rows:
    """Run a measurement in new processes.

    Returns:
        the rows that rank 0 wrote, or a single row with the key `failed` if there are none.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.directory) as directory:
        out = Path(directory) / "result.json"
        command = [script, *sys.argv[1:], "--directory", directory, "--worker", str(out)]
        command += ["--measure", measurement.measure, "--label", measurement.label]
        command += [text for option in measurement.options.items() for text in option]
        if measurement.ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(measurement.ranks)]
            command = [*launcher, *command]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        if measurement.measure == "comm" and measurement.ranks > torch.cuda.device_count():
            environment["CUDA_VISIBLE_DEVICES"] = ""  # CPU is enough because collectives are counted, not timed
        try:
            done = subprocess.run(
                [sys.executable, *command], check=False, env=environment, timeout=arguments.timeout_seconds
            )
            problem = f"exit code {done.returncode}, see above"
        except subprocess.TimeoutExpired:
            problem = f"not finished after {arguments.timeout_seconds:g} s"
        if out.exists():
            rows: Rows = json.loads(out.read_text())
            return rows
    # a failed measurement, for example out of memory, must not discard the results of the others
    return [{"command": measurement.label, "measure": measurement.measure, **measurement.options, "failed": problem}]
