"""Weights in HF format as training goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pico_ds.checkpoint.weights import save_weights
from pico_ds.data.corpus import Corpus
from pico_ds.training.callbacks.base import Callback
from pico_ds.training.metrics import StepMetrics
from pico_ds.training.run_directory import RunDirectory
from pico_ds.training.terminal import logger

if TYPE_CHECKING:
    from pico_ds.training.trainer import Trainer


class SaveWeights(Callback):
    """Saves every `checkpointing.save_every_n_steps` and at the end."""

    def __init__(self, run: RunDirectory, vocab_size: int, corpus: Corpus) -> None:
        self._run, self._vocab_size, self._corpus = run, vocab_size, corpus

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Save where it is due."""
        step, every = trainer.state.step, trainer.config.checkpointing.save_every_n_steps
        if step == trainer.config.training.max_steps or (every is not None and step % every == 0):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        theta = trainer.engine.full_parameters()
        if not trainer.engine.process.is_main:
            return
        tokenizer = self._corpus.tokenizer
        path = save_weights(
            theta,
            shape=trainer.config.model,
            vocab_size=self._vocab_size,
            dtype=torch.bfloat16 if trainer.config.training.precision == "bf16" else torch.float32,
            special_token_ids={
                "bos_token_id": tokenizer.end_of_text_id,
                "eos_token_id": tokenizer.end_of_text_id,
                "pad_token_id": tokenizer.pad_id,
            },
            tokenizer_directory=self._corpus.tokenizer_directory,
            checkpoints=self._run.checkpoints,
            step=trainer.state.step,
        )
        logger.info("saved %s", path)
