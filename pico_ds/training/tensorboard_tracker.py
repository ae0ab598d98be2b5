"""Metrics as event files of TensorBoard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class TensorBoardTracker:
    """Every metric under its own name, by outer step; a step that is done again after a resume stands once."""

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
        self._writer = SummaryWriter(str(directory), purge_step=first)
        for line in past:
            if line["step"] >= first:
                self.log(line["step"], line)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write the numbers of one line."""
        for name, value in metrics.items():
            if value is not None and name != "step":
                self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """Bring what was logged to the files: a checkpoint must not outlive the metrics that led to it."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
