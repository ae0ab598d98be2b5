"""Kill a two-rank job at random moments, resume it, and see that nothing is lost.

    python -m tests.crash_campaign --kills 100 --seed 0

Every attempt starts both ranks and kills one or both: while they start, or at a random moment of training, of which a
good part is saving. After every kill, every checkpoint that was complete still is, every new one verifies, and `latest`
names a complete one. In the end the run, brought to its last step, equals one that was never disturbed: every metric
and every weight, bit for bit. The first thing that is not so ends the campaign with an error.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from pico_ds.checkpoint.inspection import verify
from pico_ds.checkpoint.store import CheckpointStore
from tests.conftest import write_text_corpus
from tests.end_to_end.commands import course_of
from tests.launching import REPOSITORY, free_port, rank_environment

WORLD_SIZE = 2
#: a survivor of a dead rank must end within this time [s]
SURVIVOR_SECONDS = 30.0


class Campaign:
    """One run that is killed again and again."""

    def __init__(self, directory: Path, max_steps: int, stage: int, generator: random.Random) -> None:
        self.directory, self.max_steps, self.stage, self.random = directory, max_steps, stage, generator
        self.corpus = write_text_corpus(directory / "corpus.jsonl")
        self.store = CheckpointStore(directory / "killed" / "checkpoints")
        self.complete: set[int] = set()
        self.counts: Counter[str] = Counter()

    def start(self, name: str) -> list[subprocess.Popen[bytes]]:
        port = free_port()
        log = (self.directory / f"{name}.log").open("ab")
        command = [sys.executable, "scripts/train.py", "--config", "tests/end_to_end/tiny.yaml"]
        command += ["--deepspeed_config", f"ds_configs/zero{self.stage}.json", f"data.paths=[{self.corpus}]"]
        command += [f"checkpointing.runs_dir={self.directory}", f"checkpointing.run_name={name}"]
        command += [f"training.max_steps={self.max_steps}", "checkpointing.save_every_n_steps=2"]
        command += ["monitoring.log_every_n_steps=3", "evaluation.every_n_steps=50"]
        return [
            subprocess.Popen(
                command, cwd=REPOSITORY, env=rank_environment(rank, WORLD_SIZE, port), stdout=log, stderr=log
            )
            for rank in range(WORLD_SIZE)
        ]

    def finish(self, name: str) -> None:
        """Let a run come to its end."""
        codes = [rank.wait(timeout=600) for rank in self.start(name)]
        assert codes == [0] * WORLD_SIZE, f"{name} ended with {codes}; see {self.directory}/{name}.log"

    def kill_once(self) -> None:
        """Start both ranks, kill some at some moment, and look at what is left."""
        log = self.directory / "killed.log"
        offset = log.stat().st_size if log.exists() else 0
        ranks = self.start("killed")
        if self.random.random() < 0.2:
            moment = "while starting"
            self._sleep(ranks, self.random.uniform(0, 5))
        else:
            moment = "while training"
            while b"first step done" not in log.read_bytes()[offset:] and all(rank.poll() is None for rank in ranks):
                time.sleep(0.02)
            self._sleep(ranks, self.random.uniform(0, 4))
        victims = self.random.choice([[0], [1], [0, 1]])
        if any(rank.poll() is not None for rank in ranks):
            self.counts["ended before the kill"] += 1
        for victim in victims:
            ranks[victim].send_signal(signal.SIGKILL)
        if moment == "while starting":
            time.sleep(self.random.uniform(0, 0.5))
            for rank in ranks:
                rank.kill()  # a launcher would: who waits for the other to come up cannot know
        for rank in ranks:
            rank.wait(timeout=SURVIVOR_SECONDS)
        self.counts[f"{moment}, rank {' and '.join(map(str, victims))}"] += 1
        self.counts["saves cut off"] = len(self.store.cut_off())
        self.check()

    @staticmethod
    def _sleep(ranks: list[subprocess.Popen[bytes]], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(rank.poll() is None for rank in ranks):
            time.sleep(0.005)

    def check(self) -> None:
        """Nothing that was complete is lost, what is new is sound."""
        complete = set(self.store.steps())
        assert self.complete <= complete, f"lost: {sorted(self.complete - complete)}"
        for step in complete - self.complete:
            problems = list(verify(self.store.path(step)))
            assert not problems, problems
        self.complete = complete
        latest = self.store.directory / "latest"
        if latest.exists():
            assert int(latest.read_text().removeprefix("step_")) in complete
        else:
            assert len(complete) <= 1, "a checkpoint was published, and the next without `latest`"

    def compare(self) -> None:
        """The killed run took the course of the undisturbed one."""
        killed, whole = (self.directory / name for name in ("killed", "whole"))
        assert course_of(killed) == course_of(whole), "the metrics differ"
        weights = [load_file(run / f"checkpoints/step_{self.max_steps}/model.safetensors") for run in (killed, whole)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1]), "the weights differ"


def run_campaign(kills: int, seed: int, directory: Path, max_steps: int) -> Counter[str]:
    """Kill `kills` times, over as many runs as that takes; returns what happened how often."""
    generator, total = random.Random(seed), Counter[str]()
    done = runs = 0
    while done < kills:
        place = directory / f"run-{runs}"
        place.mkdir(parents=True)
        campaign = Campaign(place, max_steps, stage=generator.choice([1, 2, 3]), generator=generator)
        campaign.finish("whole")
        while done < kills and max_steps not in campaign.complete:
            campaign.kill_once()
            done += 1
            print(f"kill {done}/{kills}: {len(campaign.complete)} complete checkpoints", flush=True)
        campaign.finish("killed")
        campaign.compare()
        total.update(campaign.counts)
        runs += 1
    total["runs brought to their end, bit-identical"] = runs
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=300, help="outer steps of a run")
    parser.add_argument("--directory", type=Path, help="where the runs are kept; default: a temporary directory")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="crash-campaign-"))
    print(f"runs and logs are in {directory}", flush=True)
    for name, count in run_campaign(arguments.kills, arguments.seed, directory, arguments.max_steps).items():
        print(f"{count:>5}  {name}")


if __name__ == "__main__":
    main()
