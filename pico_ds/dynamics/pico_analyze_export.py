"""Snapshots in the layout that pico-analyze reads."""

import re
import shutil
from pathlib import Path

import torch
import yaml

from pico_ds.config import ConfigError
from pico_ds.dynamics.snapshot_reader import KINDS, SPLITS, RunSnapshots

_LAYER = re.compile(r"layers\.(\d+)\.")


def export_for_pico_analyze(snapshots: RunSnapshots, out: Path) -> None:
    """Write `training_config.yaml` and `checkpoints/step_<N>/learning_dynamics/{split}_{kind}.pt` into a new directory.

    pico-analyze takes what the names of all activations begin with for the name of the stack of layers; so there are
    layers alone, and at least two of them. Each `.pt` is a plain dict of fp32 tensors.

    Raises:
        ConfigError: `out` is there already, or cannot be written; a run with fewer than two layers recorded; a file
            that is damaged or missing. No part of `out` is left behind.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already; give a directory that is not")
    recorded = snapshots.tensors(next(iter(snapshots.by_step)), "val", "activations")
    numbers = {match.group(1) for path in recorded if (match := _LAYER.match(path))}
    if len(numbers) < 2:
        raise ConfigError(
            f"{snapshots.run}: pico-analyze needs activations of at least two layers, got {len(numbers)}; record "
            "modules of the decoder's blocks (learning_dynamics.layer_suffixes) of a model with two or more"
        )
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        _write(snapshots, partial)
        partial.rename(out)
    except OSError as error:
        name = error.filename2 or error.filename or out
        raise ConfigError(f"{name}: {error.strerror or error}; nothing was exported to {out}") from error
    except RuntimeError as error:  # torch's writer, where the disk is full
        raise ConfigError(f"{out}: cannot be written ({error}); nothing was exported") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(snapshots: RunSnapshots, out: Path) -> None:
    config = yaml.safe_load((snapshots.run / "training_config.yaml").read_text())
    # a run whose name was left to chance is called by its directory
    config["checkpointing"]["run_name"] = snapshots.run.resolve().name
    out.mkdir(parents=True)
    (out / "training_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for step, source in snapshots.by_step.items():
        target = out / "checkpoints" / f"step_{step}" / "learning_dynamics"
        target.mkdir(parents=True)
        for split in SPLITS:
            for kind in KINDS:
                tensors = snapshots.tensors(step, split, kind)
                of_layers = {path: values for path, values in tensors.items() if _LAYER.match(path)}
                torch.save(of_layers, target / f"{split}_{kind}.pt")
            shutil.copytree(source / f"{split}_data", target / f"{split}_data")
