"""Metrics to Weights & Biases, in one run however often the training is resumed."""

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

#: a step has a line of training and then one of evaluation at most: both must have a number of their own
_LINES_PER_STEP = 2


class WandbTracker:
    """Sends every line once, in order, beside the training. It must never stop a run: after an error it goes quiet.

    Lines are numbered by step and kind, so that a resumed run knows from wandb's last number which lines wandb has: it
    sends the lines of metrics.jsonl that wandb lacks, and does not send again what comes alike once more. Offline,
    where wandb cannot know what was sent, each start records the run from its beginning.
    """

    def __init__(
        self,
        config: WandbConfig,
        run: RunDirectory,
        run_config: dict[str, Any],
        past: Iterator[dict[str, Any]],
        anew: bool = False,
    ) -> None:
        """
        Args:
            past: the lines of metrics.jsonl.
            anew: be a new run at wandb, since the lines that it has will not come alike.
        """
        mode = config.mode
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._run: Any = None
        self._queue: SimpleQueue[tuple[int, dict[str, Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send, args=(past,), name="wandb", daemon=True)
        run.logs.mkdir(parents=True, exist_ok=True)
        # wandb waits 90 s for a server that does not answer
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")
        try:
            import wandb

            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=run.path.name,
                id=_run_id(run, anew),
                # offline wandb only warns of it
                resume="allow" if mode == "online" else None,
                dir=str(run.logs),
                config=run_config,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off"),
            )
            # a resumed run keeps the configuration of its first start
            self._run.config.update(run_config, allow_val_change=True)
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
            #: number of the first line that wandb lacks
            self._next = int(self._run.step)
        except Exception as error:  # noqa: BLE001  any failure of a logger is less than the run
            self._give_up(error)
        else:
            logger.info("wandb: %s, run %s, in %s", mode, self._run.id, run.logs)
            self._thread.start()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Take one line."""
        if self._run is not None:
            self._queue.put((step, metrics))

    def sync(self) -> None:
        """Wandb does as it likes; what it lacks after a crash it gets at the next start."""

    def close(self) -> None:
        """Send what is pending, and finish the run."""
        if self._run is None:
            return
        self._queue.put(None)
        self._thread.join()
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def _send(self, past: Iterator[dict[str, Any]]) -> None:
        try:
            for line in past:
                self._send_line(line["step"], {name: value for name, value in line.items() if name != "step"})
            while (entry := self._queue.get()) is not None:
                self._send_line(*entry)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def _send_line(self, step: int, metrics: dict[str, Any]) -> None:
        number = _LINES_PER_STEP * step + ("lr" not in metrics)
        if number >= self._next:
            self._run.log({"step": step, **metrics}, step=number)
            self._next = number + 1

    def _give_up(self, error: Exception) -> None:
        self._run = None
        logger.warning(
            "wandb is off for the rest of the run (%s: %s); metrics.jsonl goes on", type(error).__name__, error
        )


def _run_id(run: RunDirectory, anew: bool) -> str:
    """The id that the run had at its last start, or a new one."""
    if run.wandb_id.exists() and not anew:
        return run.wandb_id.read_text(encoding="utf-8").strip()
    chosen = secrets.token_hex(4)
    replace_text(run.wandb_id, chosen + "\n")
    return chosen
