"""What rank 0 says: a progress bar on a terminal, plain lines elsewhere, and always logs/train.log."""

import logging
from logging.handlers import MemoryHandler
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from pico_ds.console import make_console

logger = logging.getLogger("pico_ds")


def start_console(is_main: bool) -> Console:
    """The console of this process; the other ranks have a quiet one and log nothing but errors."""
    console = make_console(quiet=not is_main)
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    logger.propagate = False
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False, highlighter=None)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    # what is said before the run has a directory is kept for its log
    early = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logger.handlers = [handler, early]
    return console


def log_failure(error: BaseException) -> None:
    """Write what ended the run to the log file alone; the command says it on the terminal."""
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "%s: %s", (type(error).__name__, error), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def log_to_file(path: Path) -> None:
    """Write everything that is logged to a file as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for early in [other for other in logger.handlers if isinstance(other, MemoryHandler)]:
        early.setTarget(handler)
        early.flush()
        logger.removeHandler(early)
    logger.addHandler(handler)
