"""Periodic work beside the training."""
