"""Writes, reads and exports checkpoints."""
