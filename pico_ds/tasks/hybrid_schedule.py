"""Decides which outer steps train on tasks."""

from typing import Literal

from pico_ds.config import RunConfig
from pico_ds.data.keyed_random import keyed_uniform

StepKind = Literal["meta", "ar"]


def step_kind(step: int, config: RunConfig) -> StepKind:
    """Return the type of outer step `step`, a pure function of (seed, step), so that it is equal on every rank."""
    if step < config.smlmt.warmup_steps:
        return "ar"
    return "meta" if keyed_uniform("step kind", config.training.seed, step) < config.meta_ratio else "ar"
