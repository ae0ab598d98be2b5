"""Writes snapshots of learning dynamics to files."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import torch
from jaxtyping import Int
from torch import Tensor

# `datasets` looks up this class if transformers is in sys.modules. It fails if another thread, such as the one that
# saves checkpoints, is still importing transformers.
from transformers import PreTrainedTokenizerBase  # noqa: F401

from pico_ds.checkpoint.safetensors_writer import SafetensorsWriter
from pico_ds.data.text.tokenizer import TextTokenizer
from pico_ds.dynamics.activations import Observation
from pico_ds.dynamics.snapshot_reader import META_NAME

Split = Literal["train", "val"]
FORMAT_NAME, FORMAT_VERSION = "pico_ds.learning_dynamics", 1
#: unit and shape of the tensors of each file, for its header
_TENSOR_HEADERS = {
    "activations": ("output of the module", "[samples, width]"),
    "weights": ("parameter", "[outputs, inputs]"),
    "gradients": ("nats per token, by the mean loss of all tokens of the split, per unit of the weight", "as weights"),
}
_META_HEADER = {
    "support_loss, query_loss": "nats per context, [tasks, moments]",
    "support_accuracy, query_accuracy": "share of contexts, [tasks, moments]",
    "displacement.<layer>": "||fast - theta|| / ||theta||, [tasks, moments]",
    "gradient_cosine.<layer>": "cosine of support and query gradient, [tasks, moments]",
    "activations_before.<layer>, activations_after.<layer>": "of query contexts at readout, [tasks, contexts, width]",
    "update_effective_rank.<layer>": "proportional effective rank of fast - theta, [tasks]",
    "effective_rank.<layer>": "proportional effective rank of the weight, []",
    "head_entropy": "nats, mean over the val rows and their tokens, [layers, heads]",
}


@dataclass(frozen=True)
class SplitSnapshot:
    """The rows of a split, and their observation.

    Attributes:
        rows: token ids. The last token of a row is only a target.
    """

    rows: Int[Tensor, "samples length"]
    observation: Observation


@dataclass(frozen=True)
class Snapshot:
    """Observations of the model at one step, in host memory.

    Attributes:
        weights: weights of the recorded layers, fp32.
        meta: measures of the adaptation to fixed tasks, of attention heads and of weights.
        header: header entries in addition to format, step and units.
    """

    step: int
    splits: dict[Split, SplitSnapshot]
    weights: dict[str, Tensor]
    meta: dict[str, Tensor]
    header: dict[str, str] = field(default_factory=dict)


def write_snapshot(directory: Path, snapshot: Snapshot, tokenizer: TextTokenizer) -> None:
    """Write all files of a snapshot to an empty directory and sync them to disk.

    Raises:
        CheckpointError: the disk is full.
        OSError: the rows cannot be written.
    """
    common = {"format": FORMAT_NAME, "version": str(FORMAT_VERSION), "step": str(snapshot.step), **snapshot.header}
    first: Path | None = None
    for split, part in snapshot.splits.items():
        split_header = {**common, "split": split, "loss": f"{part.observation.loss:.6f} nats per token"}
        for kind, tensors in (
            ("activations", part.observation.activations),
            ("gradients", part.observation.gradients),
        ):
            unit, shape = _TENSOR_HEADERS[kind]
            header = {**split_header, "kind": kind, "unit": unit, "shape": shape}
            _write(directory / f"{split}_{kind}.safetensors", tensors, header)
        path = directory / f"{split}_weights.safetensors"
        if first is None:
            unit, shape = _TENSOR_HEADERS["weights"]
            _write(path, snapshot.weights, {**common, "kind": "weights", "unit": unit, "shape": shape})
            first = path
        else:
            _link_or_copy(first, path)
        _write_rows(directory / f"{split}_data", part.rows, tokenizer)
    _write(directory / META_NAME, snapshot.meta, {**common, "kind": "meta_dynamics", **_META_HEADER})


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    entries = {name: (torch.float32, tuple(values.shape)) for name, values in tensors.items()}
    with SafetensorsWriter(path, entries, header) as writer:
        for values in tensors.values():
            writer.append(values.detach().to("cpu", torch.float32).contiguous())
        writer.finish()


def _link_or_copy(existing: Path, path: Path) -> None:
    """Hard-link a file, because both splits have equal weights. Copy it if the file system has no hard links."""
    try:
        path.hardlink_to(existing)
    except OSError:
        shutil.copyfile(existing, path)


def _write_rows(directory: Path, rows: Tensor, tokenizer: TextTokenizer) -> None:
    content = {"input_ids": rows.tolist(), "text": [tokenizer.decode(row) for row in rows.tolist()]}
    features = datasets.Features(
        {"input_ids": datasets.List(datasets.Value("int32")), "text": datasets.Value("string")}
    )
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(content, features=features).save_to_disk(directory)
    for file in directory.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
