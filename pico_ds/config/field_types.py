"""Types of the configuration fields."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16"]
Readout = Literal["fim", "pre", "fimpre", "mask", "last", "mean"]

#: limit of counts, so that sums of sizes do not overflow
_MAX_COUNT = 10**9
PositiveInt = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
IntRange = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
#: range that the keyed random functions accept
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
#: bounded, because layers are built one by one even to plan a run
LayerCount = Annotated[int, Field(ge=1, le=1000)]
#: dimension of a weight
Width = Annotated[int, Field(ge=1, le=2**24)]
#: at most a year
Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A section of the configuration: frozen, with strict types and without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)
