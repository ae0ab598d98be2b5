"""The error that a user's data can cause."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file or setting and says how to mend it."""
