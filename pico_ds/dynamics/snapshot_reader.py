"""Finds and reads the snapshots of a run."""

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pico_ds.config import ConfigError

META_NAME = "meta_dynamics.safetensors"
SPLITS = ("train", "val")
KINDS = ("activations", "weights", "gradients")


@dataclass(frozen=True)
class RunSnapshots:
    """The snapshots of one run.

    Attributes:
        by_step: directory of each snapshot, in ascending order of steps.
    """

    run: Path
    by_step: dict[int, Path]

    @classmethod
    def of(cls, run: Path) -> "RunSnapshots":
        """Find the snapshots of a run.

        Raises:
            ConfigError: the directory is not a run, or the run has no snapshot.
        """
        if not (run / "training_config.yaml").exists():
            raise ConfigError(f"{run} has no training_config.yaml; give the directory of a run")
        found = {
            int(match.group(1)): path
            for path in (run / "checkpoints").glob("step_*/learning_dynamics")
            if (match := re.fullmatch(r"step_(\d+)", path.parent.name))
        }
        if not found:
            raise ConfigError(f"{run} has no snapshots; train with learning_dynamics.save_every_n_steps set")
        return cls(run, dict(sorted(found.items())))

    def tensors(self, step: int, split: str, kind: str) -> dict[str, Tensor]:
        """Return the activations, weights or gradients of a split, by module path.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        return _load(self.by_step[step] / f"{split}_{kind}.safetensors")

    def meta(self, step: int) -> dict[str, Tensor]:
        """Return the measures of adaptation, attention heads and weights, by record name."""
        return _load(self.by_step[step] / META_NAME)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); other snapshots of the run are not affected") from error
