"""The output of rank 0: a progress bar on a terminal, plain lines otherwise, and always logs/train.log."""

import logging
from logging.handlers import MemoryHandler
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from pico_ds.console import make_console
from pico_ds.errors import describe_os_error
from pico_ds.file_writing import RetryingFile
from pico_ds.progress import redirect_progress

logger = logging.getLogger("pico_ds")


def start_console(is_main: bool) -> Console:
    """Set up logging and return the console of this process.

    On ranks other than 0 the console is quiet, and only errors are logged.
    """
    console = make_console(quiet=not is_main)
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    logger.propagate = False
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False, highlighter=None)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    # messages logged before the run has a directory are kept in memory, and later written to its log file
    early = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logger.handlers = [handler, early]
    redirect_progress(is_quiet=not is_main, print_line=logger.info)
    return console


def log_failure(error: BaseException) -> None:
    """Write the error that ended the run to the log file only, because the command prints it on the terminal."""
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s: %s", (type(error).__name__, error), None)
    for handler in logger.handlers:
        if isinstance(handler, _LogFile):
            handler.handle(record)


def log_lines(text: str) -> None:
    """Write lines to the log file only, without a timestamp or level."""
    for handler in logger.handlers:
        if isinstance(handler, _LogFile):
            handler.file.append(text)


class _LogFile(logging.Handler):
    """Appends records to a file. Records that cannot be written stay in memory until they can be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = RetryingFile(path, self._warn)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as a line."""
        self.file.append(self.format(record) + "\n")

    def _warn(self, error: OSError) -> None:
        logger.warning("warning: log lines stay in memory until they can be written: %s", describe_os_error(error))


def log_to_file(path: Path) -> None:
    """Also write everything that is logged to a file, including messages logged before this call.

    Raises:
        OSError: the file cannot be opened.
    """
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for early in [other for other in logger.handlers if isinstance(other, MemoryHandler)]:
        early.setTarget(handler)
        early.flush()
        logger.removeHandler(early)
    logger.addHandler(handler)
