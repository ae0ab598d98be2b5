"""Writes metrics as TensorBoard event files."""

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
    """Writes every metric under its own name, by outer step.

    A step that is repeated after a resume appears only once. If the event files cannot be written, the tracker turns
    itself off for the rest of the run, because metrics.jsonl has the same values.
    """

    def __init__(self, directory: Path, past: Iterator[dict[str, Any]], step: int) -> None:
        """
        Args:
            past: the lines of metrics.jsonl.
            step: the outer step at which the run starts or resumes.
        """
        # the import takes a second, so import only if TensorBoard is enabled
        from torch.utils.tensorboard import SummaryWriter

        # without event files, earlier starts may have run without TensorBoard, so write all lines
        first = step if any(directory.glob("events.out.tfevents.*")) else 0
        # the evaluation at the resume step runs again, so purge that step as well and write its line again
        self._writer: SummaryWriter | None = SummaryWriter(str(directory), purge_step=first)
        self._directory = directory
        for line in past:
            if line["step"] >= first:
                self.log(line["step"], line)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write the metrics of one log line."""
        with self._disable_on_failure():
            for name, value in metrics.items():
                if value is not None and name != "step" and self._writer is not None:
                    self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """Flush the logged metrics to the files, so that no checkpoint exists without the metrics that led to it."""
        with self._disable_on_failure():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        with self._disable_on_failure():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _disable_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            logger.warning(
                "warning: TensorBoard is off for the rest of the run: %s; delete %s before the next start to rewrite "
                "it from metrics.jsonl",
                describe_os_error(error, self._directory),
                self._directory,
            )
