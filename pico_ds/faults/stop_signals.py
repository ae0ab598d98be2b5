"""Reasons to save and stop: a signal, or a launcher that has died."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from pico_ds.faults.launcher_chain import LauncherChain

#: SLURM and the launchers announce the end of an allocation by the first two; a connection that drops, by SIGHUP
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_WATCH_SECONDS = 1.0
#: within this time, a second SIGINT is the same key press, which a launcher passes on [s]
_SAME_PRESS_SECONDS = 1.0
LAUNCHER_DIED = "the launcher has gone"


class StopSignals:
    """Notes that a signal came; the training loop asks for it between steps.

    The death of a launcher counts as a signal. Without it a rank would train on as an orphan, on a GPU that nobody
    watches. Before `install` there is nothing to save, and a signal or a dead launcher ends the process.
    """

    def __init__(self) -> None:
        self._noted: str | None = None
        self._is_installed = False
        self._interrupted_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._launchers = LauncherChain.of_this_process()
        threading.Thread(target=self._watch, name="launchers", daemon=True).start()

    @property
    def received(self) -> str | None:
        """What came, or None."""
        return self._noted

    def install(self) -> None:
        """Note the signals from now on, instead of dying of them. A second SIGINT interrupts at once."""
        self._is_installed = True
        for number in _SIGNALS:
            # nohup ignores SIGHUP, and a shell ignores SIGINT for a command in the background
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)

    def uninstall(self) -> None:
        """Restore what the signals did before `install`."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._note_interrupt()
        self._noted = signal.Signals(number).name

    def _note_interrupt(self) -> None:
        """
        Raises:
            KeyboardInterrupt: the user has pressed Ctrl-C again.
        """
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            with contextlib.suppress(OSError):
                # not through a buffer, which the signal may have interrupted
                os.write(2, b"\nsaving after this step, then stopping; press Ctrl-C again to stop at once\n")
        elif now - self._interrupted_at > _SAME_PRESS_SECONDS:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        pause = threading.Event()
        while not self._launchers.is_broken:
            pause.wait(_WATCH_SECONDS)
        self._noted = self._noted or LAUNCHER_DIED
        if not self._is_installed:
            print(f"{LAUNCHER_DIED}: ending before the first step", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
