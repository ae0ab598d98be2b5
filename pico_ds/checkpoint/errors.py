"""The error that a checkpoint can cause."""

from pico_ds.errors import PicoError


class CheckpointError(PicoError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file, and says what to do."""
