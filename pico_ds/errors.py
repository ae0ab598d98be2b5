"""Errors that a user can fix, and messages for errors of the file system."""

import errno
from pathlib import Path

#: error numbers of a full disk or an exhausted quota
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
_PERMISSION_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class PicoError(Exception):
    """Base of errors that a user can fix. Commands print only the message, without a traceback."""


class ConfigError(PicoError, ValueError):
    """A configuration is invalid. The message names the value, what is allowed, and the fix."""


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
    """Return what went wrong when a file was read or written, and what to do.

    Args:
        path: file that was read or written; used if the error does not name one.
    """
    # for a copy, `filename` is the source
    name = error.filename2 or error.filename or path or "a file or connection"
    if error.errno in DISK_FULL_ERRNOS:
        advice = "free space"
    elif error.errno in _PERMISSION_ERRNOS:
        advice = "change its permissions, or choose another place"
    else:
        advice = "check the path and its file system"
    return f"{name}: {error.strerror or error}; {advice}"
