"""Which modules of the decoder are recorded."""

from collections.abc import Iterable, Mapping, Sequence

from pico_ds.config import ConfigError
from pico_ds.model.meta_model import DECODER, is_of_the_body

_WEIGHT = ".weight"


def recorded_layers(parameters: Iterable[str], suffixes: Sequence[str]) -> Mapping[str, str]:
    """Parameter names by the path of their module, as the decoder has it, in the order of the decoder.

    Args:
        parameters: names of a MetaModel's parameters. The output projection is left out: it never runs as a module, for
            the logits of a step never exist as a whole.
        suffixes: `learning_dynamics.layer_suffixes`; modules whose path ends in one of them.

    Raises:
        ConfigError: a suffix that no module of the decoder ends in.
    """
    paths = {name.removeprefix(DECODER).removesuffix(_WEIGHT): name for name in parameters if is_of_the_body(name)}
    for suffix in suffixes:
        if not any(path.endswith(suffix) for path in paths):
            ends = sorted({path.split(".", 2)[-1] for path in paths})
            raise ConfigError(
                f"learning_dynamics.layer_suffixes: no module ends in {suffix!r}; there are {', '.join(ends)}"
            )
    return {path: name for path, name in paths.items() if path.endswith(tuple(suffixes))}
