"""The weights that the inner loop adapts."""

import re
from functools import lru_cache

from pico_ds.config import ConfigError
from pico_ds.model.meta_model import DECODER, is_body_parameter

_LAST_BLOCKS = re.compile(r"last_(\d+)_blocks?")


@lru_cache(maxsize=16)
def adapted_names(adapt: str, names: tuple[str, ...], n_layers: int) -> frozenset[str]:
    """Return the names of the decoder's weights that `meta.adapt` selects. The head is always adapted.

    Args:
        adapt: all, head, last_<k>_blocks (includes the final norm), or a regular expression that is searched in the
            decoder's parameter names, for example `layers.3.swiglu.w_2.weight`.
        names: names of all parameters.

    Raises:
        ConfigError: the regular expression is invalid or matches nothing, or `k` exceeds the number of blocks.
    """
    body = {name: name.removeprefix(DECODER) for name in names if is_body_parameter(name)}
    if adapt == "all":
        return frozenset(body)
    if adapt == "head":
        return frozenset()
    if match := _LAST_BLOCKS.fullmatch(adapt):
        count = int(match.group(1))
        if not 1 <= count <= n_layers:
            raise ConfigError(f"meta.adapt: got {adapt}, but the model has {n_layers} blocks; use 1 to {n_layers}")
        prefixes = ("output_norm.", *(f"layers.{layer}." for layer in range(n_layers - count, n_layers)))
        return frozenset(name for name, short in body.items() if short.startswith(prefixes))
    try:
        pattern = re.compile(adapt)
    except re.error as error:
        raise ConfigError(f"meta.adapt: {adapt!r} is not a valid regular expression ({error}); {_CHOICES}") from error
    if not (found := frozenset(name for name, short in body.items() if pattern.search(short))):
        example = sorted(body.values())[1]
        raise ConfigError(f"meta.adapt: {adapt!r} matches no parameter such as {example!r}; {_CHOICES}")
    return found


_CHOICES = "use all, head, last_<k>_blocks, or a regular expression over the names of the decoder's weights"
