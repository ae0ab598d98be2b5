"""Types that the sections of the configuration are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16"]
#: each is a module of pico_ds.meta.learners
LearnerName = Literal["fomaml", "anil", "boil", "reptile", "meta_sgd", "protonet", "multitask", "masked_word", "ar"]
Readout = Literal["fim", "pre", "fimpre", "mask", "last", "mean"]

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
IntRange = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """Frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)
