"""Checks the ZeRO settings of DeepSpeed before they are used."""

from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from pico_ds.config import ConfigError


def check_zero_settings(settings: dict[str, Any], name: str) -> None:
    """Validate `zero_optimization` with DeepSpeed's schema.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = DeepSpeedZeroConfig.model_fields
    aliases = {field.alias for field in known.values() if field.alias}
    for key in settings:
        if key not in known and key not in aliases:
            suggestions = get_close_matches(key, [*known, *aliases], n=1, cutoff=0.6)
            hint = (
                f"did you mean {suggestions[0]}?"
                if suggestions
                else "see the ZeRO options in DeepSpeed's documentation"
            )
            raise ConfigError(f"{name}: zero_optimization.{key}: unknown key; {hint}")
    try:
        DeepSpeedZeroConfig(**settings)
    except (ValidationError, AssertionError) as error:
        problems = [
            f"zero_optimization.{'.'.join(map(str, detail['loc']))}: got {detail['input']!r}; {detail['msg']}"
            for detail in (error.errors() if isinstance(error, ValidationError) else ())
        ]
        raise ConfigError(f"{name}: {'; '.join(problems) or error}") from None
