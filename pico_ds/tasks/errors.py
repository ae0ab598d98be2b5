"""The error that impossible tasks cause."""


class TaskError(ValueError):
    """Tasks that the corpus cannot supply; the message says which setting to change."""
