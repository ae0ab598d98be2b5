"""Sends metrics to Weights & Biases. A resumed training run continues the same wandb run."""

import os
import secrets
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

from pico_ds.config.schema import WandbConfig
from pico_ds.file_writing import replace_text
from pico_ds.monitoring.run_log import logger
from pico_ds.runs.run_directory import RunDirectory

#: a step has at most one training line and then one evaluation line, and each needs its own number
_LINES_PER_STEP = 2


class WandbTracker:
    """Sends every line once and in order, from a background thread.

    An error never stops the run: it only turns the tracker off.

    Lines are numbered by step and kind (training or evaluation). A resumed run compares these numbers with the last
    number at wandb. It sends the lines of metrics.jsonl that wandb lacks and does not resend the others. Offline, wandb
    does not know which lines were sent, so each start records the run from its beginning.
    """

    def __init__(
        self,
        config: WandbConfig,
        run: RunDirectory,
        run_config: dict[str, Any],
        past: Iterator[dict[str, Any]],
        new_run: bool = False,
    ) -> None:
        """
        Args:
            past: the lines of metrics.jsonl.
            new_run: create a new wandb run, because the lines that the old one has will get different values.
        """
        mode = config.mode
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._run: Any = None
        self._queue: SimpleQueue[tuple[int, dict[str, Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send, args=(past,), name="wandb", daemon=True)
        run.logs.mkdir(parents=True, exist_ok=True)
        # by default wandb waits 90 s for a server that does not answer
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")
        try:
            import wandb

            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=run.path.name,
                id=_run_id(run, new_run),
                # offline, wandb ignores this option with a warning
                resume="allow" if mode == "online" else None,
                dir=str(run.logs),
                config=run_config,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off"),
            )
            # otherwise a resumed wandb run keeps the configuration of its first start
            self._run.config.update(run_config, allow_val_change=True)
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
            #: number of the first line that wandb does not have
            self._next = int(self._run.step)
        except Exception as error:  # noqa: BLE001  a failing tracker must not stop the run
            self._disable(error)
        else:
            logger.info("wandb: %s, run %s, in %s", mode, self._run.id, run.logs)
            self._thread.start()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Queue one line for sending."""
        if self._run is not None:
            self._queue.put((step, metrics))

    def sync(self) -> None:
        """Do nothing: wandb decides when it sends, and the next start sends the lines that a crash has lost."""

    def close(self) -> None:
        """Send the pending lines and finish the wandb run."""
        if self._run is None:
            return
        self._queue.put(None)
        self._thread.join()
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:  # noqa: BLE001
            self._disable(error)

    def _send(self, past: Iterator[dict[str, Any]]) -> None:
        try:
            for line in past:
                self._send_line(line["step"], {name: value for name, value in line.items() if name != "step"})
            while (entry := self._queue.get()) is not None:
                self._send_line(*entry)
        except Exception as error:  # noqa: BLE001
            self._disable(error)

    def _send_line(self, step: int, metrics: dict[str, Any]) -> None:
        number = _LINES_PER_STEP * step + ("lr" not in metrics)
        if number >= self._next:
            self._run.log({"step": step, **metrics}, step=number)
            self._next = number + 1

    def _disable(self, error: Exception) -> None:
        self._run = None
        logger.warning(
            "wandb is off for the rest of the run (%s: %s); metrics.jsonl still records all metrics",
            type(error).__name__,
            error,
        )


def _run_id(run: RunDirectory, new_run: bool) -> str:
    """Return the wandb id of the last start, or a new id if there is none or if `new_run` is true."""
    if run.wandb_id.exists() and not new_run:
        return run.wandb_id.read_text(encoding="utf-8").strip()
    chosen = secrets.token_hex(4)
    replace_text(run.wandb_id, chosen + "\n")
    return chosen
