"""Run directories: paths, locks, status files, and resuming from checkpoints."""
