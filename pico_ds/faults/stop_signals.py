"""Handles the reasons to save and stop: a signal, or the death of a launcher."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from pico_ds.faults.launcher_processes import LauncherChain

#: SLURM and launchers send SIGTERM or SIGUSR1 before an allocation ends; a lost connection causes SIGHUP
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_WATCH_SECONDS = 1.0
#: a second SIGINT within this time is the same key press, forwarded by a launcher [s]
_SAME_PRESS_SECONDS = 1.0
LAUNCHER_DIED = "the launcher has died"


class StopSignals:
    """Records stop signals. The training loop checks for them between steps.

    The death of a launcher counts as a signal, because otherwise an orphaned rank would continue to occupy its GPU.
    Before `install` there is nothing to save, so a signal or the death of a launcher ends the process.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._is_installed = False
        self._interrupted_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._launchers = LauncherChain.of_this_process()
        threading.Thread(target=self._watch_launchers, name="launchers", daemon=True).start()

    @property
    def received(self) -> str | None:
        """Name of the signal or reason to stop, or None."""
        return self._received

    def install(self) -> None:
        """Record signals from now on, instead of ending the process. A second SIGINT raises KeyboardInterrupt."""
        self._is_installed = True
        for number in _SIGNALS:
            # nohup ignores SIGHUP, and a shell ignores SIGINT for a command in the background
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._record)

    def uninstall(self) -> None:
        """Restore the signal handlers that `install` replaced."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._record_interrupt()
        self._received = signal.Signals(number).name

    def _record_interrupt(self) -> None:
        """
        Raises:
            KeyboardInterrupt: the user pressed Ctrl-C again.
        """
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            with contextlib.suppress(OSError):
                # unbuffered, because the signal may have interrupted a buffered write
                os.write(2, b"\nsaving after this step, then stopping; press Ctrl-C again to stop at once\n")
        elif now - self._interrupted_at > _SAME_PRESS_SECONDS:
            raise KeyboardInterrupt

    def _watch_launchers(self) -> None:
        pause = threading.Event()
        while not self._launchers.is_broken:
            pause.wait(_WATCH_SECONDS)
        self._received = self._received or LAUNCHER_DIED
        if not self._is_installed:
            print(f"{LAUNCHER_DIED}: exiting before the first step", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
