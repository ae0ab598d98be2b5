"""Output to a terminal: shows every text as it is, and outlives the terminal."""

import io
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from typing_extensions import Buffer


def make_console(**settings: Any) -> Console:
    """A console that reads no markup and no emoji codes, so that `[kqv]` and `:key:` in a user's text are printed.

    Args:
        settings: those of `rich.console.Console`.
    """
    return Console(markup=False, emoji=False, highlight=False, **settings)


def survive_lost_output() -> None:
    """Make standard output and standard error drop what cannot be written.

    A connection that ended, a launcher that died and a full disk below `> train.log` make every write fail, which must
    not end a run.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # closed by the caller, or replaced by something that is no file
        if not isinstance(stream, io.TextIOWrapper):
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
