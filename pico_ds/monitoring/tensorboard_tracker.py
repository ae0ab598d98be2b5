"""Metrics as event files of TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pico_ds.errors import describe_os_error
from pico_ds.monitoring.run_log import logger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker:
    """Every metric under its own name, by outer step; a step that is done again after a resume stands once.

    If its files cannot be written it is off for the rest of the run: metrics.jsonl has the same numbers.
    """

    def __init__(self, directory: Path, past: Iterator[dict[str, Any]], step: int) -> None:
        """
        Args:
            past: the lines of metrics.jsonl.
            step: that the run goes on from.
        """
        # here, for it takes a second to import that other runs need not wait for
        from torch.utils.tensorboard import SummaryWriter

        # a start without event files may have been without TensorBoard: all is written
        first = step if any(directory.glob("events.out.tfevents.*")) else 0
        # the evaluation of the step itself is done again: the step is purged as well, and its line written again
        self._writer: SummaryWriter | None = SummaryWriter(str(directory), purge_step=first)
        self._directory = directory
        for line in past:
            if line["step"] >= first:
                self.log(line["step"], line)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write the numbers of one line."""
        with self._giving_up():
            for name, value in metrics.items():
                if value is not None and name != "step" and self._writer is not None:
                    self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """Bring what was logged to the files: a checkpoint must not outlive the metrics that led to it."""
        with self._giving_up():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        with self._giving_up():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            logger.warning(
                "warning: TensorBoard is off for the rest of the run: %s; remove %s before the next start to have it "
                "written anew from metrics.jsonl",
                describe_os_error(error, self._directory),
                self._directory,
            )
