"""The error of the hub."""


class HubError(RuntimeError):
    """What could not be pushed; the message says why, and never shows a token."""
