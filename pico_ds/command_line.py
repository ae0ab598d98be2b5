"""Runs the main function of a script. Errors that a user can fix print one sentence instead of a traceback."""

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pico_ds.errors import PicoError, describe_os_error

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: exit code after Ctrl-C, as in shells
INTERRUPTED_EXIT_CODE = 130
#: longer than a launcher needs to end the other ranks of a node after the first rank failed [s]
_FIRST_RANK_SECONDS = 10.0


def exit_code_of(main: Callable[[], int]) -> int:
    """Run the main function of a script and return its exit code. Errors print one sentence, without a traceback.

    Returns:
        the result of `main`; 1 after an error, 130 after Ctrl-C.
    """
    _ignore_output_errors()
    threading.excepthook = _print_thread_error
    try:
        return main()
    except PicoError as error:
        message = str(error)
    except OSError as error:
        message = f"{describe_os_error(error)}, and run the command again"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    print(f"error: {message}", file=sys.stderr)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        print("ignore the traceback of torchrun below; the error is in the line above", file=sys.stderr)
    return 1


@contextmanager
def report_once_per_node() -> Iterator[None]:
    """Let only the first rank of a node report an error that all its ranks have, such as a configuration error.

    The other ranks wait before they raise the error. If the first rank fails, the launcher ends them during the wait.
    """
    try:
        yield
    except PicoError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(_FIRST_RANK_SECONDS)
        raise


def _print_thread_error(failed: threading.ExceptHookArgs) -> None:
    """Print one sentence if a library's thread fails on a file, for example on a full disk; otherwise a traceback."""
    if isinstance(failed.exc_value, OSError):
        print(f"error: {describe_os_error(failed.exc_value)}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


def _ignore_output_errors() -> None:
    """Make standard output and standard error drop text that cannot be written.

    Every write fails after a closed connection, after the launcher died, or if `> train.log` is on a full disk. That
    must not end a run.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # the caller closed it, or replaced it by an object that is not a file
        if type(stream) is not io.TextIOWrapper:
            continue
        stream.flush()
        file = io.BufferedWriter(_DroppingFile(stream.fileno(), "w", closefd=False))
        replacement = io.TextIOWrapper(
            file,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, replacement)


class _DroppingFile(io.FileIO):
    def write(self, content: "Buffer", /) -> int:
        try:
            written = super().write(content)
        except OSError:
            written = None
        return memoryview(content).nbytes if written is None else written
