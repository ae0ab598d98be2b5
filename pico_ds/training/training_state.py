"""How far a run has come."""

from dataclasses import dataclass


@dataclass
class TrainingState:
    """Counters of the outer loop; positions count over ALL ranks.

    Attributes:
        step: outer steps done, skipped ones included.
        meta_steps, ar_steps: the same by kind.
        rows: rows of autoregressive training consumed.
        tokens: tokens put through the model, padding of contexts included.
        tasks: tasks trained on.
        skipped_steps: steps whose loss or gradient was not finite.
        consecutive_skipped_steps: the same, since the last good step.
    """

    step: int = 0
    meta_steps: int = 0
    ar_steps: int = 0
    rows: int = 0
    tokens: int = 0
    tasks: int = 0
    skipped_steps: int = 0
    consecutive_skipped_steps: int = 0
