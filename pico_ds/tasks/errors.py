"""The error that impossible tasks cause."""

from pico_ds.errors import PicoError


class TaskError(PicoError, ValueError):
    """Tasks that the corpus cannot supply; the message says which setting to change."""
