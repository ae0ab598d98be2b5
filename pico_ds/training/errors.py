"""The error that ends a run."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says what happened and what to try."""
