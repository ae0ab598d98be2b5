"""Exports snapshots to the layout that pico-analyze reads."""

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

    Each `.pt` file is a dict of fp32 tensors. Only modules of the decoder's layers are exported, because pico-analyze
    uses the common prefix of all activation names as the name of the layer stack.

    Raises:
        ConfigError: `out` exists or cannot be written, fewer than two layers are recorded, or a file of a snapshot is
            damaged or missing. No partial output is left.
    """
    if out.exists():
        raise ConfigError(f"{out} already exists; give a directory that does not exist")
    recorded = snapshots.tensors(next(iter(snapshots.by_step)), "val", "activations")
    numbers = {match.group(1) for path in recorded if (match := _LAYER.match(path))}
    if len(numbers) < 2:
        raise ConfigError(
            f"{snapshots.run}: pico-analyze needs activations of at least two layers, got {len(numbers)}; record "
            "modules of the decoder layers (learning_dynamics.layer_suffixes) of a model with at least two layers"
        )
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        _write(snapshots, partial)
        partial.rename(out)
    except OSError as error:
        name = error.filename2 or error.filename or out
        raise ConfigError(f"{name}: {error.strerror or error}; nothing was exported to {out}") from error
    except RuntimeError as error:  # torch.save raises this if the disk is full
        raise ConfigError(f"{out}: cannot be written ({error}); nothing was exported") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(snapshots: RunSnapshots, out: Path) -> None:
    config = yaml.safe_load((snapshots.run / "training_config.yaml").read_text())
    # a generated run name is not in the configuration, so use the name of the directory
    config["checkpointing"]["run_name"] = snapshots.run.resolve().name
    out.mkdir(parents=True)
    (out / "training_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for step, source in snapshots.by_step.items():
        target = out / "checkpoints" / f"step_{step}" / "learning_dynamics"
        target.mkdir(parents=True)
        for split in SPLITS:
            for kind in KINDS:
                tensors = snapshots.tensors(step, split, kind)
                layer_tensors = {path: values for path, values in tensors.items() if _LAYER.match(path)}
                torch.save(layer_tensors, target / f"{split}_{kind}.pt")
            shutil.copytree(source / f"{split}_data", target / f"{split}_data")
