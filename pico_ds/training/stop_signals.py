"""SIGTERM and SIGUSR1: SLURM and the launchers announce the end of an allocation by them."""

import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes that a signal came; the training loop asks for it between steps."""

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Note the signals from now on, instead of dying of them."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
