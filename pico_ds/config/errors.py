"""The error that a user's configuration can cause."""

from pico_ds.errors import PicoError


class ConfigError(PicoError, ValueError):
    """A configuration that cannot be used; the message says what was got, what is allowed, and how to mend it."""
