"""The error of the hub."""

from pico_ds.errors import PicoError


class HubError(PicoError, RuntimeError):
    """What could not be pushed; the message says why, and never shows a token."""
