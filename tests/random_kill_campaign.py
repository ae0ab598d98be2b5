"""Kill a two-rank job at random moments, resume it, and check that nothing is lost.

    python -m tests.random_kill_campaign --kills 100 --seed 0

Every attempt starts both ranks and kills one or both of them, during the start or during training, often in a save.
After every kill, all earlier checkpoints must still be complete, all new checkpoints must pass verification, and
`latest` must name a complete checkpoint. Finally the run is trained to its last step. All metrics and weights must be
bit-identical to those of an undisturbed run. The campaign ends with an error at the first failed check.
"""

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from pico_ds.checkpoint.checkpoint_commands import verify
from pico_ds.checkpoint.checkpoint_store import CheckpointStore
from tests.conftest import write_text_corpus
from tests.launching import Launcher, Process, free_port, rank_variables, real
from tests.run_results import TINY, assert_bit_identical

WORLD_SIZE = 2
#: the other rank must end within this time after a kill [s]
SURVIVOR_SECONDS = 30.0


class Campaign:
    """A run that is killed repeatedly."""

    def __init__(
        self, directory: Path, max_steps: int, stage: int, generator: random.Random, launcher: Launcher
    ) -> None:
        self.directory, self.max_steps, self.stage, self.generator = directory, max_steps, stage, generator
        self.launcher = launcher
        # approximate time until a rank starts to train
        self.start_seconds = 5.0 if launcher is real else 1.0
        self.corpus = write_text_corpus(directory / "corpus.jsonl")
        self.store = CheckpointStore(directory / "killed" / "checkpoints")
        self.complete: set[int] = set()
        self.counts: Counter[str] = Counter()

    def start(self, name: str) -> list[Process]:
        port = free_port()
        command = ["scripts/train.py", "--config", TINY, "--deepspeed_config", f"ds_configs/zero{self.stage}.json"]
        command += [f"data.paths=[{self.corpus}]", f"checkpointing.runs_dir={self.directory}"]
        command += [f"checkpointing.run_name={name}", f"training.max_steps={self.max_steps}"]
        command += ["checkpointing.save_every_n_steps=2", "monitoring.log_every_n_steps=3"]
        command += ["evaluation.every_n_steps=50"]
        log = self.directory / f"{name}.log"
        return [
            self.launcher.start(*command, log=log, **rank_variables(rank, WORLD_SIZE, port))
            for rank in range(WORLD_SIZE)
        ]

    def finish(self, name: str) -> None:
        """Train a run to its last step."""
        codes = [rank.wait(timeout=600) for rank in self.start(name)]
        assert codes == [0] * WORLD_SIZE, f"{name} ended with {codes}; see {self.directory}/{name}.log"

    def kill_once(self) -> None:
        """Start both ranks, kill one or both at a random moment, and check the checkpoints."""
        log = self.directory / "killed.log"
        offset = log.stat().st_size if log.exists() else 0
        ranks = self.start("killed")
        if self.generator.random() < 0.2:
            moment = "while starting"
            self._sleep_while_alive(ranks, self.generator.uniform(0, self.start_seconds))
        else:
            moment = "while training"
            while b"first step done" not in log.read_bytes()[offset:] and all(rank.poll() is None for rank in ranks):
                time.sleep(0.02)
            self._sleep_while_alive(ranks, self.generator.uniform(0, 4))
        victims = self.generator.choice([[0], [1], [0, 1]])
        if any(rank.poll() is not None for rank in ranks):
            self.counts["ended before the kill"] += 1
        for victim in victims:
            ranks[victim].send_signal(signal.SIGKILL)
        if moment == "while starting":
            time.sleep(self.generator.uniform(0, 0.5))
            for rank in ranks:
                rank.kill()  # as a launcher would: a rank that waits for the other to start cannot detect its death
        for rank in ranks:
            rank.wait(timeout=SURVIVOR_SECONDS)
        self.counts[f"{moment}, rank {' and '.join(map(str, victims))}"] += 1
        self.counts["interrupted saves"] = len(self.store.interrupted_saves())
        self.check()

    @staticmethod
    def _sleep_while_alive(ranks: list[Process], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(rank.poll() is None for rank in ranks):
            time.sleep(0.005)

    def check(self) -> None:
        """Raise if a complete checkpoint is lost, or if a new one fails verification."""
        complete = set(self.store.steps())
        assert self.complete <= complete, f"lost checkpoints of steps {sorted(self.complete - complete)}"
        for step in complete - self.complete:
            problems = list(verify(self.store.path(step)))
            assert not problems, problems
        self.complete = complete
        latest = self.store.directory / "latest"
        if latest.exists():
            assert int(latest.read_text().removeprefix("step_")) in complete
        else:
            assert len(complete) <= 1, "there is no `latest` although several checkpoints are complete"

    def compare(self) -> None:
        """Raise if the killed run differs from the undisturbed run."""
        assert_bit_identical(self.directory / "killed", self.directory / "undisturbed", self.max_steps)


def run_campaign(kills: int, seed: int, directory: Path, max_steps: int, launcher: Launcher = real) -> Counter[str]:
    """Kill `kills` times, in as many runs as needed. Returns how often each event happened."""
    generator, total = random.Random(seed), Counter[str]()
    killed = runs = 0
    while killed < kills:
        run_directory = directory / f"run-{runs}"
        run_directory.mkdir(parents=True)
        campaign = Campaign(run_directory, max_steps, generator.choice([1, 2, 3]), generator, launcher)
        campaign.finish("undisturbed")
        while killed < kills and max_steps not in campaign.complete:
            campaign.kill_once()
            killed += 1
            print(f"kill {killed}/{kills}: {len(campaign.complete)} complete checkpoints", flush=True)
        campaign.finish("killed")
        campaign.compare()
        total.update(campaign.counts)
        runs += 1
    total["finished runs, bit-identical"] = runs
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
