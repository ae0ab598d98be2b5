"""Summary measures of the snapshots of a run: one number for each step, layer and measure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from pico_ds.dynamics.matrix_measures import (
    condition_number,
    gini,
    hoyer,
    linear_cka,
    proportional_effective_rank,
    singular_values,
)
from pico_ds.dynamics.snapshot_reader import KINDS, RunSnapshots
from pico_ds.progress import track

_VALUE_MEASURES: dict[str, Callable[[Tensor], float]] = {
    "norm": lambda values: float(values.norm()),
    "gini": gini,
    "hoyer": hoyer,
}


@dataclass(frozen=True)
class Measurement:
    """The value of one measure of one layer at one step.

    Attributes:
        kind: activations, weights, gradients, attention or adaptation.
        layer: path of the module, or `layers.<i>.heads.<j>` for an attention head.
    """

    step: int
    kind: str
    measure: str
    layer: str
    value: float


def analyze(snapshots: RunSnapshots, split: str) -> Iterator[Measurement]:
    """Yield all measures of all snapshots. Measures that pico-analyze also has use its definitions.

    Activations: norm, gini and hoyer. With `val`, also the similarity to the last snapshot (`cka_to_last`) and to the
    previous one (`cka_to_previous`). The rows of `train` change at every step and cannot be compared.
    Weights and gradients: norm, gini, hoyer, effective_rank and condition_number.
    Adaptation, means over tasks: displacement after the last inner step, and cosine of the support and the query
    gradient before the first.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    last = snapshots.tensors(max(snapshots.by_step), split, "activations")
    previous: dict[str, Tensor] = {}
    for step in track(snapshots.by_step, "analyzing snapshots", len(snapshots.by_step)):
        for kind in KINDS:
            tensors = snapshots.tensors(step, split, kind)
            for layer, values in tensors.items():
                for measure, function in _VALUE_MEASURES.items():
                    yield Measurement(step, kind, measure, layer, function(values))
                if kind != "activations" and values.ndim == 2:
                    singular = singular_values(values)
                    yield Measurement(step, kind, "effective_rank", layer, proportional_effective_rank(singular))
                    yield Measurement(step, kind, "condition_number", layer, condition_number(singular))
            if kind == "activations" and split == "val":
                for layer, values in tensors.items():
                    yield Measurement(step, kind, "cka_to_last", layer, linear_cka(values, last[layer]))
                    if previous:
                        yield Measurement(step, kind, "cka_to_previous", layer, linear_cka(values, previous[layer]))
                previous = tensors
        yield from _meta_measurements(step, snapshots.meta(step))


def _meta_measurements(step: int, meta: dict[str, Tensor]) -> Iterator[Measurement]:
    for block, entropies in enumerate(meta["head_entropy"].tolist()):
        for head, entropy in enumerate(entropies):
            yield Measurement(step, "attention", "head_entropy", f"layers.{block}.heads.{head}", entropy)
    for name, values in meta.items():
        record, _, layer = name.partition(".")
        if record == "displacement":
            yield Measurement(step, "adaptation", "displacement", layer, float(values[:, -1].mean()))
        elif record == "gradient_cosine":
            yield Measurement(step, "adaptation", "gradient_cosine", layer, float(values[:, 0].mean()))
