"""Where what is made of data is kept."""

import os
from pathlib import Path

from pico_ds.config import DataConfig
from pico_ds.errors import DataError


def cache_directory(config: DataConfig) -> Path:
    """data.cache_dir, else $PICO_DS_CACHE, else ~/.cache/pico_ds; made where it is not there.

    Raises:
        DataError: it cannot be made.
    """
    cache = Path(config.cache_dir or os.environ.get("PICO_DS_CACHE") or "~/.cache/pico_ds").expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"data.cache_dir: cannot make {cache} ({error.strerror}); name a writable directory, or set $PICO_DS_CACHE"
        ) from error
    return cache
