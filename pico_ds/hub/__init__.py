"""Pushes models, snapshots and results to the Hugging Face hub."""
