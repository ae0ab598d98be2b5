"""The directory for cached corpora and shards."""

import os
from pathlib import Path

from pico_ds.config import DataConfig
from pico_ds.errors import DataError


def cache_directory(config: DataConfig) -> Path:
    """Return data.cache_dir, else $PICO_DS_CACHE, else ~/.cache/pico_ds. Creates the directory if it does not exist.

    Raises:
        DataError: the directory cannot be created.
    """
    cache = Path(config.cache_dir or os.environ.get("PICO_DS_CACHE") or "~/.cache/pico_ds").expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"data.cache_dir: cannot create {cache} ({error.strerror}); choose a writable one, or set $PICO_DS_CACHE"
        ) from error
    return cache
