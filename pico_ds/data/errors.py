"""The error that a user's data can cause."""

from pico_ds.errors import PicoError


class DataError(PicoError, ValueError):
    """Data that cannot be used; the message names the file or setting and says how to mend it."""
