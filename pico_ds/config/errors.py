"""The error that a user's configuration can cause."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what was got, what is allowed, and how to mend it."""
