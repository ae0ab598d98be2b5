"""SIGTERM and SIGUSR1: SLURM and the launchers announce the end of an allocation by them."""

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes that a signal came; the training loop asks for it between steps.

    That the launcher dies counts as one: without it a rank would train on as an orphan, on a GPU that nobody watches.
    """

    def __init__(self, launched: bool) -> None:
        """
        Args:
            launched: this process has a launcher; else its parent, a shell perhaps, may end as it likes.
        """
        self._noted: str | None = None
        self._launcher = os.getppid() if launched else None

    @property
    def received(self) -> str | None:
        """What came, or None."""
        if self._noted is None and self._launcher is not None and os.getppid() != self._launcher:
            self._noted = "the launcher has gone"
        return self._noted

    def install(self) -> None:
        """Note the signals from now on, instead of dying of them."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = signal.Signals(number).name
