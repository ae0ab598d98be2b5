"""How a script ends: with one sentence for every error that a user can mend."""

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

#: of a command that Ctrl-C ended, as shells have it
INTERRUPTED_EXIT_CODE = 130
#: longer than a launcher needs to end the other ranks of a node after the first one failed
_FIRST_RANK_SECONDS = 10.0


def exit_code_of(main: Callable[[], int]) -> int:
    """Run the main function of a script; errors are printed as one sentence, without a traceback.

    Returns:
        what `main` returns; 1 after an error, 130 after Ctrl-C.
    """
    _survive_lost_output()
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
        print("torchrun adds a traceback of its own below; the error is the line above", file=sys.stderr)
    return 1


@contextmanager
def report_once_per_node() -> Iterator[None]:
    """Let the first rank of a node report an error that all its ranks meet, such as one of the configuration.

    The launcher ends the other ranks when the first one fails. A rank that alone has an error reports it after a wait.
    """
    try:
        yield
    except PicoError:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(_FIRST_RANK_SECONDS)
        raise


def _print_thread_error(failed: threading.ExceptHookArgs) -> None:
    """One sentence for a disk that is full below a library's thread; a traceback for all else."""
    if isinstance(failed.exc_value, OSError):
        print(f"error: {describe_os_error(failed.exc_value)}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


def _survive_lost_output() -> None:
    """Make standard output and standard error drop what cannot be written.

    A connection that ended, a launcher that died and a full disk below `> train.log` make every write fail, which must
    not end a run.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # closed by the caller, or replaced by something that is no file
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
