"""Ends a job that makes no progress, because a rank that hangs or dies leaves the others waiting in a collective."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

#: exit code of a rank that hung, or that waited for a rank that hung
HANG_EXIT_CODE = 75
#: time for the other ranks to write their stacks, before the launcher kills them because one rank has exited [s]
_GRACE_SECONDS = 3.0
#: a rank that has noticed the failure is killed after this time, even if writing its reports hangs [s]
_END_SECONDS = 20.0
#: time for a rank to notice by itself that another rank has died, and to abandon its save; launchers kill the rank
#: after 30 s [s]
_LOST_SECONDS = 15.0


class Watchdog:
    """Writes the stacks of all threads and ends the process after `timeout_seconds` without a call of `beat`.

    The watchdog also ends the process if another rank of the node has died and this rank does not notice. In that case
    an NCCL collective waits forever, and blocks the thread that would handle the launcher's SIGTERM. Because ranks wait
    for each other in every step, all of them notice at about the same time. A second timer, which does not need the
    interpreter lock, covers native code that hangs while it holds the lock.
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
            lost_ranks: returns the ranks of this node that have died.
            directory: where `stacks_rank_<rank>.txt` is written.
            on_end: called before the process ends, with the reason and whether the reason is that another rank died.
        """
        self._on_end = on_end
        self._timeout, self._rank, self._lost_ranks = timeout_seconds, rank, lost_ranks
        self._path = directory / f"stacks_rank_{rank}.txt"
        self._last_beat = time.monotonic()
        self._stopped = threading.Event()
        self._file: TextIO | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start watching."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # append, because the stacks of an earlier start are evidence
        self._file = self._path.open("a", encoding="utf-8")
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """Record that there was progress."""
        self._last_beat = time.monotonic()
        if self._file is not None:
            backup = self._timeout + 2 * _GRACE_SECONDS
            faulthandler.dump_traceback_later(backup, exit=True, file=self._file)

    def stop(self) -> None:
        """Stop watching."""
        faulthandler.cancel_dump_traceback_later()
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._file is not None:
            self._file.close()
            self._file = None
            # this only tidies up: a disk that has become read-only must not fail a finished run
            with suppress(OSError):
                if self._path.stat().st_size == 0:
                    self._path.unlink()

    def _watch(self) -> None:
        lost_since: float | None = None
        while not self._stopped.wait(min(1.0, self._timeout / 10)):
            now = time.monotonic()
            if now - self._last_beat > self._timeout:
                self._end(f"no progress for {self._timeout:g} s (training.hang_timeout_seconds)", is_lost_peer=False)
            if not (lost := self._lost_ranks()):
                continue
            lost_since = lost_since or now
            if now - max(lost_since, self._last_beat) > _LOST_SECONDS:
                died = f"rank {', '.join(map(str, lost))} of this node has died, and this rank waits for it"
                self._end(died, is_lost_peer=True)

    def _end(self, reason: str, is_lost_peer: bool) -> None:
        assert self._file is not None
        # the writes below may hang as well
        faulthandler.dump_traceback_later(_END_SECONDS, exit=True, file=self._file)
        print(f"rank {self._rank}: {reason}; exiting. Stack traces are in {self._path}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        self._file.flush()
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._on_end(reason, is_lost_peer)
        time.sleep(_GRACE_SECONDS)
        # the main thread hangs, so a normal exit, which needs it, would hang too
        os._exit(HANG_EXIT_CODE)
