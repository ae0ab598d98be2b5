"""The error that a checkpoint can cause."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file, and says what to do."""
