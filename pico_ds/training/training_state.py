"""The progress of a training run."""

from dataclasses import dataclass


@dataclass
class TrainingState:
    """Counters of the outer loop. Rows, tokens and tasks are summed over ALL ranks.

    Attributes:
        step: number of completed outer steps, including skipped ones.
        meta_steps, ar_steps: number of completed outer steps of each kind.
        rows: rows used by autoregressive steps.
        tokens: tokens processed by the model, including the padding of contexts.
        tasks: tasks used by meta steps.
        skipped_steps: number of steps whose loss or gradient was not finite.
        consecutive_skipped_steps: number of skipped steps since the last step that was applied.
    """

    step: int = 0
    meta_steps: int = 0
    ar_steps: int = 0
    rows: int = 0
    tokens: int = 0
    tasks: int = 0
    skipped_steps: int = 0
    consecutive_skipped_steps: int = 0
