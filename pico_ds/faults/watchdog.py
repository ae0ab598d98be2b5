"""Ends a job that makes no progress: a rank that hangs or dies leaves the others waiting in a collective."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

#: exit code of a rank that hung, or waited for one
HANG_EXIT_CODE = 75
#: for the other ranks to write their stacks, before the launcher kills them because one has ended
_GRACE_SECONDS = 3.0
#: for a rank that has noticed to end, whatever comes
_END_SECONDS = 20.0
#: for a rank that lost another one to notice by itself, and to let go of its save; launchers kill it after 30 s
_LOST_SECONDS = 15.0


class Watchdog:
    """After `timeout_seconds` without `beat`: writes the stacks of all threads, and ends the process.

    The same where another rank of the node has died and this one does not notice: a collective of NCCL waits on, and
    with it the thread that would act upon the launcher's SIGTERM. The ranks wait for each other in every step, so all
    of them notice within moments. A second timer, which needs no interpreter lock, covers a hang inside of native code
    that holds the lock.
    """

    def __init__(
        self,
        timeout_seconds: float,
        rank: int,
        directory: Path,
        lost_ranks: Callable[[], list[int]] = list,
        on_end: Callable[[str, bool], None] = lambda *_: None,
    ) -> None:
        """
        Args:
            lost_ranks: gives the ranks of this node that have died.
            directory: for `stacks_rank_<rank>.txt`.
            on_end: called before the process ends, with the reason, and whether it is that another rank has died.
        """
        self._on_end = on_end
        self._timeout, self._rank, self._lost_ranks = timeout_seconds, rank, lost_ranks
        self._path = directory / f"stacks_rank_{rank}.txt"
        self._last = time.monotonic()
        self._stopped = threading.Event()
        self._file: TextIO | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Watch from now on."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # appended: the stacks of a start before this one are evidence
        self._file = self._path.open("a", encoding="utf-8")
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """There was progress."""
        self._last = time.monotonic()
        if self._file is not None:
            backup = self._timeout + 2 * _GRACE_SECONDS
            faulthandler.dump_traceback_later(backup, exit=True, file=self._file)

    def stop(self) -> None:
        """Watch no more."""
        faulthandler.cancel_dump_traceback_later()
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._file is not None:
            self._file.close()
            self._file = None
            # it is only tidied: a disk that has become read-only does not make a finished run a failed one
            with suppress(OSError):
                if self._path.stat().st_size == 0:
                    self._path.unlink()

    def _watch(self) -> None:
        lost_since: float | None = None
        while not self._stopped.wait(min(1.0, self._timeout / 10)):
            now = time.monotonic()
            if now - self._last > self._timeout:
                self._end(f"no progress for {self._timeout:g} s (training.hang_timeout_seconds)", is_lost_peer=False)
            if not (lost := self._lost_ranks()):
                continue
            lost_since = lost_since or now
            if now - max(lost_since, self._last) > _LOST_SECONDS:
                died = f"rank {', '.join(map(str, lost))} of this node has died, and this one waits for it"
                self._end(died, is_lost_peer=True)

    def _end(self, reason: str, is_lost_peer: bool) -> None:
        assert self._file is not None
        # what follows may hang as well, where it writes
        faulthandler.dump_traceback_later(_END_SECONDS, exit=True, file=self._file)
        print(f"rank {self._rank}: {reason}; stacks are in {self._path}; ending", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        self._file.flush()
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._on_end(reason, is_lost_peer)
        time.sleep(_GRACE_SECONDS)
        # the main thread hangs: nothing that needs it, such as an orderly exit, would come to an end
        os._exit(HANG_EXIT_CODE)
