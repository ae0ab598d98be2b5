"""The errors that a user can cause, and the message for errors of the file system."""

import errno
from pathlib import Path

#: errors of a disk that is full, or of a user who has no more room on it
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class PicoError(Exception):
    """An error whose message says what was got, what is allowed, and what to do. Commands print only the message."""


class ConfigError(PicoError, ValueError):
    """A configuration is invalid. The message gives the value, what is allowed, and how to fix it."""


class DataError(PicoError, ValueError):
    """Data cannot be used. The message names the file or the setting."""


class TaskError(PicoError, ValueError):
    """The corpus cannot supply the tasks. The message names the setting to change."""


class CheckpointError(PicoError, RuntimeError):
    """A checkpoint cannot be written or read. The message names the file."""


class HubError(PicoError, RuntimeError):
    """An upload to the hub failed. The message never contains a token."""


class TrainingError(PicoError, RuntimeError):
    """Training cannot continue. The message says why and what to change."""


def describe_os_error(error: OSError, path: Path | None = None) -> str:
    """What went wrong with a file that cannot be read or written, and what to do.

    Args:
        path: what the program read or wrote; used if the error names no file.
    """
    # of a copy, the first name is that of the source
    name = error.filename2 or error.filename or path or "a file or connection"
    if error.errno in FULL:
        advice = "free space"
    elif error.errno in _FORBIDDEN:
        advice = "change its permissions, or choose another place"
    else:
        advice = "check the path and its file system"
    return f"{name}: {error.strerror or error}; {advice}"
