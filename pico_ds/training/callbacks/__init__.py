"""Callbacks of the trainer, such as logging, checkpointing and evaluation."""
