"""Break the code in one place at a time, and print which test fails.

    python -m tests.mutation_campaign
    python -m tests.mutation_campaign --only ring rope

Every mutation is applied to a copy of the repository. The tests of the changed code run first, then the rest of the
default tier, and then the slow tier, until a test fails. docs/testing.md shows the resulting table.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.launching import REPOSITORY


@dataclass(frozen=True)
class Mutation:
    """A defect, as a replacement of one piece of source code.

    Attributes:
        file: path relative to the repository.
        old: source code that occurs once in `file`.
        new: its replacement.
        nearest: paths of the tests that run first, separated by spaces.
    """

    name: str
    defect: str
    file: str
    old: str
    new: str
    nearest: str


MUTATIONS = [
    Mutation(
        "head-gradient",
        "The outer gradient through the initial head has the wrong sign",
        "pico_ds/meta/learners/fomaml.py",
        "grad_outputs=list(of_head.values())",
        "grad_outputs=[-part for part in of_head.values()]",
        "tests/numerics/test_outer_gradient.py",
    ),
    Mutation(
        "inner-step",
        "Inner steps after the first ascend",
        "pico_ds/meta/inner_optimizer.py",
        "torch._foreach_add_(fast, steps)",
        "torch._foreach_sub_(fast, steps)",
        "tests/numerics/test_outer_gradient.py",
    ),
    Mutation(
        "rank-weight",
        "A rank's gradient is not weighted by the world size",
        "pico_ds/training/train_step.py",
        "outcome = self._learner.add_gradient(inputs, gradient, scale=process.world_size / n_tasks)",
        "outcome = self._learner.add_gradient(inputs, gradient, scale=1 / n_tasks)",
        "tests/end_to_end/test_launchers.py",
    ),
    Mutation(
        "fragment-offset",
        "A fragment under ZeRO 1 and 2 always has offset 0",
        "pico_ds/engine/optimizer_state.py",
        "tuple(weight.shape), address.start, address.numel)",
        "tuple(weight.shape), 0, address.numel)",
        "tests/distributed/test_resume.py",
    ),
    Mutation(
        "mask",
        "Only one occurrence of the word is masked",
        "pico_ds/tasks/context_encoding.py",
        "is_masked = index.words_at(places) == words[:, None]",
        "is_masked = (hit := index.words_at(places) == words[:, None]) & (hit.cumsum(1) == 1)",
        "tests/unit/tasks",
    ),
    Mutation(
        "held-out-words",
        "Held-out words are classes in training",
        "pico_ds/tasks/index/class_words.py",
        "in_split = [split == word_split(self.words[i], config, split_seed) for i in candidates]",
        "in_split = [True for _ in candidates]",
        "tests/unit/tasks",
    ),
    Mutation(
        "row-order",
        "Every epoch has the same order of rows",
        "pico_ds/data/rows.py",
        "self._order(int(epoch))",
        "self._order(0)",
        "tests/unit/data",
    ),
    Mutation(
        "rope",
        "Rotary embeddings reflect instead of rotating",
        "pico_ds/model/rotary_embedding.py",
        "even * cos - odd * sin",
        "even * cos + odd * sin",
        "tests/numerics/test_model.py",
    ),
    Mutation(
        "loss-chunks",
        "Only the last chunk of the loss has a gradient of the weight",
        "pico_ds/model/language_model_loss.py",
        "weight_gradient += to_weight",
        "weight_gradient.copy_(to_weight)",
        "tests/numerics/test_loss.py",
    ),
    Mutation(
        "coverage",
        "A gap between the fragments of a parameter is accepted",
        "pico_ds/checkpoint/checkpoint_index.py",
        "if fragment.offset != covered:",
        "if fragment.offset < covered:",
        "tests/unit/checkpoint",
    ),
    Mutation(
        "chunk-hash",
        "Chunks of a shard are not compared with their hashes",
        "pico_ds/checkpoint/safetensors_reader.py",
        "if xxhash.xxh3_128_hexdigest(out) != self._record.chunk_hashes[number]:",
        "if number < 0:",
        "tests/unit/checkpoint",
    ),
    Mutation(
        "fsync",
        "A small file is renamed before its content is on the disk",
        "pico_ds/file_writing.py",
        "        os.fsync(file.fileno())",
        "        pass",
        "tests/unit/checkpoint/test_sync_order.py",
    ),
    Mutation(
        "progress",
        "A resumed run starts again at the first row",
        "pico_ds/training/trainer.py",
        "for name, value in progress.items() if name in known}",
        'for name, value in progress.items() if name in known and name != "rows"}',
        "tests/unit/training tests/end_to_end/test_resume.py",
    ),
    Mutation(
        "ring",
        "An all-reduce is counted as one pass around the ring",
        "scripts/benchmarks/cost_model.py",
        '"all-reduce": 2,',
        '"all-reduce": 1,',
        "tests/unit/benchmarks",
    ),
    Mutation(
        "activations",
        "Snapshots record the token before the requested one",
        "pico_ds/dynamics/activations.py",
        "output[:, sequence_idx].float()",
        "output[:, sequence_idx - 1].float()",
        "tests/numerics/test_dynamics.py",
    ),
    Mutation(
        "perplexity",
        "Perplexity is a mean over rows instead of tokens",
        "pico_ds/evaluation/perplexity.py",
        "Perplexity(float(losses.sum()) / count, count)",
        "Perplexity(float((losses / n_tokens).mean()), count)",
        "tests/unit/evaluation/test_perplexity.py",
    ),
    Mutation(
        "hub-files",
        "The training state is pushed to the hub",
        "pico_ds/hub/upload_files.py",
        "for name in sorted(names) if _MODEL.fullmatch(name)",
        "for name in sorted(names)",
        "tests/unit/hub tests/end_to_end/test_hub.py",
    ),
    Mutation(
        "metrics-tail",
        "A line of the metrics is read while it is being written",
        "pico_ds/monitoring/watch/metrics_tail.py",
        '*lines, _ = file.read().split(b"\\n")',
        'lines = file.read().split(b"\\n")',
        "tests/unit/monitoring",
    ),
    Mutation(
        "agreement",
        "Ranks with different configurations train together",
        "pico_ds/preflight/rank_agreement.py",
        "if len(set(digests)) == 1:",
        "if len(set(digests)) >= 1:",
        "tests/distributed/test_preflight.py",
    ),
    Mutation(
        "report",
        "A figure plots every metric at the token count of the last line",
        "pico_ds/monitoring/report/run_records.py",
        "found.append(tokens)",
        'found.append(self.maximum("tokens"))',
        "tests/unit/monitoring",
    ),
]


def copy_repository(destination: Path) -> None:
    """Copy the files of the working tree, and link its virtual environment."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines():
        if (REPOSITORY / name).exists():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, destination / name)
    (destination / ".venv").symlink_to(REPOSITORY / ".venv")


def failing_test(repository: Path, *arguments: str) -> str | None:
    """The name of the first test that fails, or None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "logical", "--maxprocesses", "4", "--dist", "loadfile"]
    variables = {**os.environ, "PYTHONPATH": str(repository), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [*command, *arguments], cwd=repository, env=variables, capture_output=True, text=True, check=False
    )
    if result.returncode in (0, 5):
        return None
    failure = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, flags=re.MULTILINE)
    assert failure is not None, result.stdout[-3000:] + result.stderr[-3000:]
    return failure[1]


def run(mutation: Mutation) -> tuple[str, str]:
    """The tier and the name of the first test that fails with a mutation."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        repository = Path(directory)
        copy_repository(repository)
        path = repository / mutation.file
        assert path.read_text().count(mutation.old) == 1, f"{mutation.name}: {mutation.file} has changed"
        path.write_text(path.read_text().replace(mutation.old, mutation.new))
        nearest = [name for name in mutation.nearest.split() if (repository / name).exists()]
        for tier, arguments in (("default", ["-m", "not slow", *nearest]), ("default", ["-m", "not slow"])):
            if (test := failing_test(repository, *arguments)) is not None:
                return tier, test
        test = failing_test(repository, "-m", "slow")
        return ("none", "no test fails") if test is None else ("slow", test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[mutation.name for mutation in MUTATIONS], metavar="NAME")
    arguments = parser.parse_args()
    for mutation in MUTATIONS:
        if arguments.only is None or mutation.name in arguments.only:
            started = time.monotonic()
            tier, test = run(mutation)
            print(f"| {mutation.defect} | `{mutation.file}` | {tier} | `{test}` |", flush=True)
            print(f"{mutation.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
