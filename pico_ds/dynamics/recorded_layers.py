"""Selects the decoder modules that snapshots record."""

from collections.abc import Iterable, Mapping, Sequence

from pico_ds.config import ConfigError
from pico_ds.model.meta_model import DECODER, is_body_parameter

_WEIGHT = ".weight"


def recorded_layers(parameters: Iterable[str], suffixes: Sequence[str]) -> Mapping[str, str]:
    """Return the parameter names of the recorded modules, by module path, in the order of the decoder.

    The output projection is never recorded: it does not run as a module, because the logits of a step are computed in
    chunks.

    Args:
        parameters: names of a MetaModel's parameters.
        suffixes: `learning_dynamics.layer_suffixes`. A module is recorded if its path ends in one of them.

    Raises:
        ConfigError: a suffix matches no module of the decoder.
    """
    paths = {name.removeprefix(DECODER).removesuffix(_WEIGHT): name for name in parameters if is_body_parameter(name)}
    for suffix in suffixes:
        if not any(path.endswith(suffix) for path in paths):
            ends = sorted({path.split(".", 2)[-1] for path in paths})
            raise ConfigError(
                f"learning_dynamics.layer_suffixes: no module ends in {suffix!r}; available: {', '.join(ends)}"
            )
    return {path: name for path, name in paths.items() if path.endswith(tuple(suffixes))}
