"""The error that ends a run."""

from pico_ds.errors import PicoError


class TrainingError(PicoError, RuntimeError):
    """Training that cannot go on; the message says what happened and what to try."""
