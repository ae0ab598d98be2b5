"""The directory of a run, its lock, status and checkpoints."""
